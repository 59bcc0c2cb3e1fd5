"""Three times the capacity: what a server still answers, how soon, and how soon it has recovered.

A small release, really trained, on the embedded stack with SQLite; one server; feeds of users with a history.

1. The unloaded latency, at a quarter of a first guess of the capacity.
2. The peak: the most good answers a second at any rate that is offered, in steps up to half above the guess.
3. Three times that for a while.
4. Half of the guess, until latencies are back where they were at that rate before, and nobody is refused any
   more.
5. Three times the feeds again, with some interactions and searches beside them, interactions also on a port
   of their own: who is refused?

A good answer is one within the caller's second. The load comes from ghz, on one core at most. **It shares
the machine's cores** with the server, Triton and Redis: on two cores, three times the capacity takes a part
of the server's own. `others_busy` is the share of the cores that was in use before anything was loaded;
where it is not near 0, all other figures are in doubt.
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from benchmarks import open_loop
from benchmarks.ghz import ghz_program
from benchmarks.open_loop import Run, percentile
from benchmarks.release_stage import Stage, open_stage
from benchmarks.servers import report

_FEED: Final = "keek.v1.FeedService/ListFeed"
_FEED_DATA: Final = {"user_id": "u{{randomInt 1 301}}", "page_size": 10}
_CLOSED: Final = (1, 4, 16)
_STEPS: Final = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5)
_OVERLOAD: Final = 3.0
_WINDOW_S: Final = 0.5
_GOOD_WINDOWS: Final = 4
_INSIDE: Final = re.compile(
    r'^keek_rpc_seconds_(sum|count)\{code="OK",method="/keek\.v1\.FeedService/ListFeed"\} (\S+)$',
    re.MULTILINE,
)
_LIMIT: Final = re.compile(r"^keek_concurrency_limit (\S+)$", re.MULTILINE)


def main() -> None:
    """Prints one JSON object, and writes it to benchmarks/results/overload.json."""
    parser = argparse.ArgumentParser(description="three times the capacity")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the overload (default: 20)")
    parser.add_argument("--step-seconds", type=float, default=6.0, help="of each step before (default: 6)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keek-overload-") as directory:
        result = asyncio.run(_measure(Path(directory), arguments.seconds, arguments.step_seconds))
    report("overload", result)


async def _measure(directory: Path, seconds: float, step_s: float) -> dict[str, Any]:
    program = await asyncio.to_thread(ghz_program)
    async with open_stage(directory, "sqlite", server_count=1) as stage:
        others = await _busy(2.0)
        return {**await _Load(stage, program).measure(seconds, step_s), "others_busy": round(others, 2)}


@dataclass(frozen=True, slots=True)
class _Load:
    """The phases, one after the other."""

    stage: Stage
    ghz: Path

    async def measure(self, seconds: float, step_s: float) -> dict[str, Any]:
        closed = {callers: await self._closed(callers) for callers in _CLOSED}
        guess = max(run.goodput for run in closed.values())
        unloaded = await self._feeds(guess / 4, step_s * 2)
        steps = [await self._feeds(guess * step, step_s) for step in _STEPS]
        peak = max(run.goodput for run in steps)

        before_s = await self._inside()
        overload = await self._feeds(peak * _OVERLOAD, seconds)
        limit, inside_s = await self._limit(), await self._inside()
        before, recovery = steps[0], await self._feeds(guess * _STEPS[0], max(10.0, step_s))
        shed = await self._mixed(peak * _OVERLOAD, step_s)

        unloaded_p99_ms = percentile(unloaded.latencies_ms(), 99)
        inside_ms = 1e3 * (inside_s[0] - before_s[0]) / max(1.0, inside_s[1] - before_s[1])
        return {
            "goodput_vs_peak": round(overload.goodput / peak, 2),
            "accepted_p99_vs_unloaded": round(percentile(overload.latencies_ms(), 99) / unloaded_p99_ms, 2),
            "recovers_s": recovers_s(overload, recovery, 2 * percentile(before.latencies_ms(), 99)),
            "peak_per_s": round(peak, 1),
            "limit_at_the_end": round(limit, 1),
            "mean_in_the_handler_ms": round(inside_ms, 1),
            "unloaded": unloaded.summary(),
            "steps": [run.summary() for run in steps],
            "overload": overload.summary(),
            "recovery": recovery.summary(),
            "answered_share_by_priority": shed,
            "closed_loop": {callers: run.summary() for callers, run in closed.items()},
        }

    async def _closed(self, callers: int) -> Run:
        _say(f"{callers} callers that wait")
        server = self.stage.addresses[0]
        return await open_loop.closed_loop(self.ghz, server, _FEED, _FEED_DATA, callers=callers, calls=1000)

    async def _feeds(self, per_s: float, seconds: float) -> Run:
        _say(f"{per_s:.0f} feeds a second for {seconds:.0f} s")
        return await self._open(_FEED, _FEED_DATA, per_s, seconds)

    async def _open(
        self, method: str, data: dict[str, Any], per_s: float, seconds: float, server: str | None = None
    ) -> Run:
        server = server or self.stage.addresses[0]
        return await open_loop.open_loop(self.ghz, server, method, data, per_s=per_s, seconds=seconds)

    async def _mixed(self, feeds_per_s: float, seconds: float) -> dict[str, float]:
        async with self.stage.admin() as client:
            video_id = (await anext(aiter(client.iter_videos()))).video_id
        interaction = {
            "event_id": "{{newUUID}}",
            "user_id": "u{{randomInt 1 301}}",
            "video_id": video_id,
            "kind": "INTERACTION_KIND_VIEW",
        }
        record, similar = (
            "keek.v1.InteractionService/RecordInteraction",
            "keek.v1.SearchService/ListSimilarVideos",
        )
        own_port = self.stage.servers[0].interactions_address
        runs = await asyncio.gather(
            self._feeds(feeds_per_s, seconds),
            self._open(record, {"interaction": interaction}, 20, seconds),
            self._open(record, {"interaction": interaction}, 20, seconds, own_port),
            self._open(similar, {"video_id": video_id}, 20, seconds),
        )
        names = ("feed", "interaction", "interaction_own_port", "search")
        return {
            name: round(len(run.latencies_ms()) / len(run.calls), 2)
            for name, run in zip(names, runs, strict=True)
        }

    async def _inside(self) -> tuple[float, float]:
        """Seconds that good feeds took in the server so far, and how many they were."""
        found = dict(_INSIDE.findall(await self.stage.servers[0].metrics()))
        return float(found.get("sum", 0.0)), float(found.get("count", 0.0))

    async def _limit(self) -> float:
        match = _LIMIT.search(await self.stage.servers[0].metrics())
        assert match is not None
        return float(match[1])


def recovers_s(overload: Run, recovery: Run, bound_ms: float) -> float:
    """Seconds from the last call of the overload to the first two seconds without a bad half: one with a
    call that was not answered, or with a p99 above the bound. Infinite where there are none."""
    began = overload.calls[-1].sent
    windows: dict[int, list[float]] = {}
    for call in recovery.calls:
        latency_ms = call.latency_s * 1e3 if call.code == "OK" else float("inf")
        windows.setdefault(int((call.sent - began) / _WINDOW_S), []).append(latency_ms)
    good = [index for index, values in sorted(windows.items()) if _p99(values) <= bound_ms]
    for start in range(len(good) - _GOOD_WINDOWS + 1):
        run = good[start : start + _GOOD_WINDOWS]
        if all(after == before + 1 for before, after in pairwise(run)):
            return round(run[0] * _WINDOW_S, 1)
    return float("inf")


def _p99(values: list[float]) -> float:
    if float("inf") in values:
        return float("inf")
    return percentile(values, 99) if len(values) > 1 else values[0]


async def _busy(seconds: float) -> float:
    """The share of all cores that is in use while nothing is loaded."""
    before = _ticks()
    await asyncio.sleep(seconds)
    idle, total = (after - earlier for after, earlier in zip(_ticks(), before, strict=True))
    return 1.0 - idle / total


def _ticks() -> tuple[int, int]:
    values = [int(value) for value in Path("/proc/stat").read_text("ascii").splitlines()[0].split()[1:]]
    return values[3] + values[4], sum(values)


def _say(text: str) -> None:
    print(f"{time.strftime('%X')} {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
