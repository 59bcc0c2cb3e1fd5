"""Feeds under load, from a release of any size, beside what they cost at best and what they cost before.

Users come by Zipf's law out of 100,000, all of whom have a history, so that every feed goes through
the user tower. ghz, a compiled client, makes the calls, on the same cores as everything else; curl calls the
prototype, which speaks HTTP. What is compared runs in turn, in rounds; medians over the rounds count.
"""

import argparse
import asyncio
import os
import re
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop
from tqdm import trange

import keek.aio
from benchmarks.feed_calls import PAGE_SIZE, STREAM_PAGES, Calls, prototype_times_ms
from benchmarks.feed_floor import measure_floor
from benchmarks.feed_peers import running_peer
from benchmarks.feed_scene import Catalogue, make_catalogue, open_stage, serving, wait_until_projected
from benchmarks.feed_users import asking_users, past_events
from benchmarks.ghz import Outcome
from benchmarks.server_process import ServerProcess
from benchmarks.servers import report
from keek_server.settings import Settings

_SMALL: Final = 10_000
_PILOT: Final = 1_000
_PROTOTYPE_CALLS, _PROTOTYPE_WARM_UP = 40, 5
_TWO_WORKERS: Final = ("--workers", "2")
_NO_REUSE: Final[Mapping[str, Any]] = {"reuse_user_vectors": False}
_FAILURES = re.compile(r"^keek_feed_failures_total\{[^}]*\} (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    alone: int
    """Calls of one caller, a round."""
    seconds: float
    """How long many callers call, about, a round."""
    rounds: int


@dataclass(slots=True)
class Rounds:
    """What the rounds gave."""

    feeds: list[Outcome] = field(default_factory=list)
    small: list[Outcome] = field(default_factory=list)
    """The same on the small release."""
    echoes: list[Outcome] = field(default_factory=list)
    many: list[Outcome] = field(default_factory=list)
    interactions: list[Outcome] = field(default_factory=list)
    many_echoes: list[Outcome] = field(default_factory=list)
    streams: list[Outcome] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """What they say by themselves."""
        feeds_p99, small_p99 = _percentile_ms(self.feeds, 99), _percentile_ms(self.small, 99)
        rps, echo_rps = _rps(self.many), _rps(self.many_echoes)
        keek_calls = [*self.feeds, *self.small, *self.many, *self.interactions, *self.streams]
        return {
            "p50_ms": round(_percentile_ms(self.feeds, 50), 3),
            "p99_ms": round(feeds_p99, 3),
            "rps": round(rps),
            "echo_rps": round(echo_rps),
            "rps_vs_echo": round(rps / echo_rps, 3),
            "stream_pages_per_s": round(_rps(self.streams) * STREAM_PAGES),
            "p99_1m_vs_10k": round(feeds_p99 / small_p99, 2),
            "many_p50_ms": round(_percentile_ms(self.many, 50), 2),
            "many_p99_ms": round(_percentile_ms(self.many, 99), 2),
            "feeds_per_interaction": round(_count(self.many) / _count(self.interactions), 1),
            "errors": sum(sum(each.errors.values()) for each in keek_calls),
        }


async def measure_feed(videos: int, effort: Effort) -> dict[str, Any]:
    """Makes two releases, serves both, and measures.

    Returns:
        `p50_ms`, `p99_ms`: ListFeed of ten videos, one call at a time. `rps`: what 16 callers on 4
        connections get while an interaction is recorded every ten feeds; `echo_rps`: what they get of
        an empty grpc.aio method that answers with the same page. `stream_pages_per_s`: pages in streams of
        five. `floor_p50_ms`: one raw Triton call, one raw search, one Redis round trip and one echo, in
        sum. `prototype_p50_ms`: brute force by NumPy behind FastAPI, one call at a time.
        `p99_1m_vs_10k`: over the p99 of a release of 10,000 videos, whatever `videos` is.
        `workers2_vs_1`, `rps_vs_echo_no_reuse`: null where the server has no such option
        or setting. `failed_stages`: stages of feeds that failed open, of which ghz sees nothing.
    """
    with tempfile.TemporaryDirectory(prefix="keek-feed-") as name:
        folder = Path(name)
        async with open_stage(folder, videos) as stage:
            events = past_events(videos)
            catalogue = await make_catalogue(stage, videos, events)
            small = await make_catalogue(stage, _SMALL, past_events(_SMALL))
            calls = Calls.prepare(folder, catalogue.video_ids)
            async with serving(catalogue, "server") as server, serving(small, "small") as other:
                await wait_until_projected(server, catalogue)
                await wait_until_projected(other, small)
                async with _running_echo(server, folder) as echo:
                    rounds = await _rounds(calls, server.address, other.address, echo, effort)
                failed_stages = await _failed_stages(server) + await _failed_stages(other)
                floor = await measure_floor(catalogue, events, stage.history_length)
            prototype_ms = await _prototype_p50_ms(catalogue, folder)
            two_workers = no_reuse = None
            if await _has_option(_TWO_WORKERS[0]):
                async with serving(catalogue, "workers", options=_TWO_WORKERS) as server:
                    two_workers = await _rps_of(server, calls, effort, rounds)
            if _NO_REUSE.keys() <= Settings.model_fields.keys():
                async with serving(catalogue, "no-reuse", _NO_REUSE) as server:
                    no_reuse = await _rps_of(server, calls, effort, rounds)
    figures = rounds.figures()
    floor["echo_ms"] = _percentile_ms(rounds.echoes, 50)
    floor_ms = sum(floor.values())
    return figures | {
        "videos": videos,
        "index_kind": catalogue.built.report.kind,
        "cores": os.cpu_count(),
        "rps_vs_echo_no_reuse": _ratio(no_reuse, figures["echo_rps"]),
        "workers2_vs_1": _ratio(two_workers, figures["rps"]),
        "prototype_p50_ms": round(prototype_ms, 2),
        "speedup_vs_prototype": round(prototype_ms / figures["p50_ms"], 1),
        "floor_p50_ms": round(floor_ms, 3),
        "p50_vs_floor": round(figures["p50_ms"] / floor_ms, 2),
        "floor": {name: round(ms, 3) for name, ms in floor.items()},
        "failed_stages": failed_stages,
    }


async def _rounds(calls: Calls, feeds: str, small: str, echo: str, effort: Effort) -> Rounds:
    """Calls what is at these addresses in turn."""
    rounds = Rounds()
    rps, echo_rps = (await calls.many(feeds, _PILOT)).rps, (await calls.many(echo, _PILOT)).rps
    for _ in trange(effort.rounds, desc="measuring feeds", disable=None):
        rounds.feeds.append(await calls.one_at_a_time(feeds, effort.alone))
        rounds.small.append(await calls.one_at_a_time(small, effort.alone))
        rounds.echoes.append(await calls.one_at_a_time(echo, effort.alone))
        many, recorded = await calls.many_with_interactions(feeds, _total(rps, effort), rps)
        rounds.many.append(many)
        rounds.interactions.append(recorded)
        rounds.many_echoes.append(await calls.many(echo, _total(echo_rps, effort)))
        rounds.streams.append(await calls.stream(feeds, _total(rps / STREAM_PAGES, effort)))
        rps = many.rps
    return rounds


async def _rps_of(server: ServerProcess, calls: Calls, effort: Effort, measured: Rounds) -> float:
    """Feeds a second of another server, by the same load as in the rounds."""
    expected = _rps(measured.many)
    await calls.many(server.address, _PILOT)
    rounds = range(effort.rounds)
    total = _total(expected, effort)
    return _rps([(await calls.many_with_interactions(server.address, total, expected))[0] for _ in rounds])


async def _has_option(option: str) -> bool:
    """Whether `keek-server serve` knows it."""
    command = (sys.executable, "-m", "keek_server", "serve", "--help")
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return option.encode() in output


@asynccontextmanager
async def _running_echo(server: ServerProcess, folder: Path) -> AsyncIterator[str]:
    """The empty method, which answers with a page of the server's."""
    async with keek.aio.Client(server.address) as client:
        page = await client.list_feed(asking_users(1, seed=0)[0], page_size=PAGE_SIZE)
    answer = folder / "page.binpb"
    answer.write_bytes(page.SerializeToString())
    async with running_peer("echo", answer) as address:
        yield address


async def _prototype_p50_ms(catalogue: Catalogue, folder: Path) -> float:
    async with running_peer("prototype", catalogue.built.folder) as address:
        times_ms = await prototype_times_ms(address, folder, _PROTOTYPE_WARM_UP + _PROTOTYPE_CALLS)
    return statistics.median(times_ms[_PROTOTYPE_WARM_UP:])


async def _failed_stages(server: ServerProcess) -> int:
    return sum(int(float(value)) for value in _FAILURES.findall(await server.metrics()))


def _total(rps: float, effort: Effort) -> int:
    return max(1, round(rps * effort.seconds))


def _percentile_ms(outcomes: Iterable[Outcome], percentage: float) -> float:
    return statistics.median(each.percentile_ms(percentage) for each in outcomes)


def _rps(outcomes: Iterable[Outcome]) -> float:
    return statistics.median(each.rps for each in outcomes)


def _count(outcomes: Iterable[Outcome]) -> int:
    return sum(each.count for each in outcomes)


def _ratio(part: float | None, whole: float) -> float | None:
    return None if part is None else round(part / whole, 3)


def main() -> None:
    """Prints one JSON object, and writes it to benchmarks/results/feed.json."""
    parser = argparse.ArgumentParser(description="Feeds under load, beside echo, floor and prototype")
    parser.add_argument("--videos", type=int, default=1_000_000, help="of the release (default: 1000000)")
    parser.add_argument("--calls", type=int, default=2_000, help="of one caller, a round (default: 2000)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of load, a round (default: 8)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    arguments = parser.parse_args()
    effort = Effort(arguments.calls, arguments.seconds, arguments.rounds)
    report("feed", uvloop.run(measure_feed(arguments.videos, effort)))


if __name__ == "__main__":
    main()
