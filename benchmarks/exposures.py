"""What the exposure log costs, and whether it is complete.

Two servers on one stack, a small release and two arms; one of them logs what it shows, the other nothing. In
turn each answers eight callers that wait, as fast as it can, over rounds. A third one, which nobody asks,
has the jobs that are one server's: with those on the one that logs, the ratio was 0.96 where both logged.
`throughput_vs_without` is the median over the rounds of the one's feeds a second over the other's; `logged`
are the rows of the table, and `served` the pages that the logging server answered well.

Goals: `logged` equals `served`, and at least 0.95 of the throughput is left.
"""

import argparse
import asyncio
import re
import statistics
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

import keek
import keek.aio
from benchmarks import open_loop
from benchmarks.ghz import ghz_program
from benchmarks.release_stage import open_stage, serving
from benchmarks.server_process import ServerProcess
from benchmarks.servers import report
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.storage.tables import exposures

_FEED: Final = "keek.v1.FeedService/ListFeed"
_FEED_DATA: Final = {"user_id": "u{{randomInt 1 301}}", "page_size": 10}
_CALLERS: Final = 8
_WARM_UP: Final = 500
_SERVED: Final = re.compile(
    r'^keek_rpc_seconds_count\{code="OK",method="/keek\.v1\.FeedService/ListFeed"\} (\S+)$', re.MULTILINE
)
_SETTLED_S: Final = 3.0
"""For what waits to be written, twice a second."""


def main() -> None:
    """Prints one JSON object, and writes it to benchmarks/results/exposures.json."""
    parser = argparse.ArgumentParser(description="The cost of the exposure log")
    parser.add_argument("--rounds", type=int, default=9, help="(default: 9)")
    parser.add_argument("--calls", type=int, default=2_000, help="of each server in a round (default: 2,000)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keek-exposures-") as directory:
        result = asyncio.run(_measure(Path(directory), arguments.rounds, arguments.calls))
    report("exposures", result)


async def _measure(directory: Path, rounds: int, calls: int) -> dict[str, Any]:
    program = await asyncio.to_thread(ghz_program)
    async with AsyncExitStack() as resources:
        stage = await resources.enter_async_context(open_stage(directory, "sqlite", server_count=1))
        servers = {}
        for name, sampling in (("with", 1.0), ("without", 0.0)):
            settings = stage.settings.model_copy(update={"exposure_sampling": sampling})
            servers[name] = ServerProcess(name, settings, stage.settings.data_dir / "logs")
            await resources.enter_async_context(serving(servers[name]))
        await _experiment(stage.admin())
        rates: dict[str, list[float]] = {name: [] for name in servers}
        for name in servers:
            await _calls(program, servers[name], _WARM_UP)
        for number in range(rounds):
            # Who comes first changes: what a machine does over time is not one server's.
            for name in list(servers)[:: 1 if number % 2 else -1]:
                rates[name].append(await _calls(program, servers[name], calls))
        await asyncio.sleep(_SETTLED_S)
        found = _SERVED.search(await servers["with"].metrics())
        logged = await _logged(stage.settings)
    assert found is not None
    ratios = [own / other for own, other in zip(rates["with"], rates["without"], strict=True)]
    return {
        "served": int(float(found[1])),
        "logged": logged,
        "throughput_vs_without": round(statistics.median(ratios), 3),
        "per_s": {name: round(statistics.median(own), 1) for name, own in rates.items()},
        "rounds": rounds,
    }


async def _experiment(client: keek.aio.Client) -> None:
    arms = [
        keek.Arm(name="control"),
        keek.Arm(name="half", parameters=keek.FeedParameters(personalised_share=0.5, exploration=0.1)),
    ]
    async with client:
        await client.create_experiment(
            keek.ExperimentDefinition(experiment_id="mix", traffic_percent=100.0, arms=arms)
        )
        await client.start_experiment("mix")
    await asyncio.sleep(1.0)


async def _calls(program: Path, server: ServerProcess, calls: int) -> float:
    """Good answers a second."""
    run = await open_loop.closed_loop(
        program, server.address, _FEED, _FEED_DATA, callers=_CALLERS, calls=calls
    )
    return run.goodput


async def _logged(settings: Settings) -> int:
    async with open_database(settings) as database:
        (row,) = await database.rows(sa.select(sa.func.count()).select_from(exposures))
        return int(row[0])


if __name__ == "__main__":
    main()
