"""What a ranker gains on users whose taste is known, and what it costs.

The gain is simulated: users who like what is new, popular and of some directions of taste more than the dot
product says are served in its order, some videos drawn by chance. A ranker learns from that log as it does
from a real one. `ndcg_vs_dot_product` is its NDCG on the latest part of the log over that of the dot product;
`reward_vs_dot_product` are the likes that further pages really earn in its order, over those in the dot
product's; `reward_best` is the same for whoever knows the users' minds.

The cost is measured: that ranker in a real release, and two servers on one Triton, one of which ranks. In
turn one caller asks each for pages. `ms_per_page` is the ranking stage as the server measures it, Triton
included; `p50_vs_without` is the one's median page over the other's. Users come back, as they do: their
vectors and candidates are mostly kept, so that the ranker is the only call to Triton.
"""

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

import keek.aio
from benchmarks.release_stage import open_stage, serving
from benchmarks.server_process import ServerProcess
from benchmarks.servers import report
from benchmarks.simulated_ranking import World
from keek_training.demo.processes import run_command
from keek_training.ranker.fit import Fitted, fit_ranker, scores_of
from keek_training.ranker.pages import Pages, Shown
from keek_training.runs import Run

_USERS: Final = 600
_VIDEOS: Final = 5000
_VIDEO_EXPLORATION: Final = 0.1
_WARM_UP: Final = 40
_ASKED: Final = 40
"""Users whose pages are timed."""


def main() -> None:
    """Prints one JSON object, and writes it to benchmarks/results/ranker.json."""
    parser = argparse.ArgumentParser(description="What a ranker gains and costs")
    parser.add_argument("--pages", type=int, default=8_000, help="that are logged (default: 8,000)")
    parser.add_argument("--rounds", type=int, default=8, help="of calls to each server (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    arguments = parser.parse_args()
    gain = simulate(np.random.default_rng(arguments.seed), arguments.pages)
    with tempfile.TemporaryDirectory(prefix="keek-ranker-") as directory:
        cost = asyncio.run(_cost(Path(directory), gain.fitted, arguments.rounds))
    report("ranker", gain.figures | cost)


@dataclass(frozen=True, slots=True)
class Gain:
    """What a ranker came to."""

    fitted: Fitted
    figures: dict[str, Any]


def simulate(rng: np.random.Generator, pages: int) -> Gain:
    """Has a ranker learn from so many pages, and serve a quarter as many."""
    world = World.draw(rng, _USERS, _VIDEOS)
    log = world.log(rng, world.visits(rng, pages), _VIDEO_EXPLORATION)
    fitted = fit_ranker(Pages.of(log))
    later = world.visits(rng, pages // 4)
    width = later.proposed.shape[1]
    proposed = Pages.of(
        [
            Shown(world.page(later, number), np.ones(width), np.arange(width), number)
            for number in range(len(later.users))
        ]
    )
    before = world.earned(later, world.scores(later))
    return Gain(
        fitted,
        {
            "ndcg_vs_dot_product": round(fitted.ndcg / fitted.ndcg_dot_product, 4),
            "reward_vs_dot_product": round(
                world.earned(later, scores_of(fitted.model, proposed)) / before, 4
            ),
            "reward_best": round(world.earned(later, world.likes(later)) / before, 4),
            "ndcg": round(fitted.ndcg, 4),
            "ndcg_dot_product": round(fitted.ndcg_dot_product, 4),
            "pages": dict(zip(("train", "validation", "latest"), fitted.page_counts, strict=True)),
        },
    )


async def _cost(directory: Path, fitted: Fitted, rounds: int) -> dict[str, Any]:
    from keek_training.ranker.learning import write_ranker

    async with AsyncExitStack() as resources:
        stage = await resources.enter_async_context(open_stage(directory, "sqlite", server_count=0))
        run = Run.named("small", stage.settings)
        await asyncio.to_thread(write_ranker, fitted.model, run, {"refused": ""})
        await asyncio.to_thread(run_command, "keek-train", "publish", "--run", "small")
        servers = {}
        for name, ranks in (("with", True), ("without", False)):
            settings = stage.settings.model_copy(update={"ranker": ranks})
            servers[name] = ServerProcess(name, settings, stage.settings.data_dir / "logs")
            await resources.enter_async_context(serving(servers[name]))
        clients = {
            name: await resources.enter_async_context(keek.aio.Client(server.address))
            for name, server in servers.items()
        }
        for client in clients.values():
            await _times_ms(client, _WARM_UP)
        times: dict[str, list[float]] = {name: [] for name in clients}
        for number in range(rounds):
            # Who comes first changes: what a machine does over time is not one server's.
            for name in list(clients)[:: 1 if number % 2 else -1]:
                times[name] += await _times_ms(clients[name], _ASKED)
        stage_ms = _stage_ms(await servers["with"].metrics())
    written = run.read_ranker()
    assert written is not None
    p50 = {name: statistics.median(own) for name, own in times.items()}
    return {
        "ms_per_page": round(stage_ms, 3),
        "p50_vs_without": round(p50["with"] / p50["without"], 3),
        "p50_ms": {name: round(own, 3) for name, own in p50.items()},
        "model_ms_per_page": written["ms_per_page"],
    }


async def _times_ms(client: keek.aio.Client, count: int) -> list[float]:
    times = []
    for number in range(count):
        began = time.perf_counter()
        page = await client.list_feed(f"u{1 + number % _ASKED}")
        times.append((time.perf_counter() - began) * 1e3)
        assert not page.degradations, page.degradations
    return times


def _stage_ms(metrics: str) -> float:
    """Mean time of the ranking stage."""
    found = {
        what: re.search(rf'^keek_feed_stage_seconds_{what}\{{stage="ranker"\}} (\S+)$', metrics, re.MULTILINE)
        for what in ("sum", "count")
    }
    total, count = (float(each[1]) for each in found.values() if each is not None)
    return total / count * 1e3


if __name__ == "__main__":
    main()
