"""Triton, Redis and SQL killed, stalled and blackholed under load: what becomes of the feeds?

A small release, really trained, one server with its default settings on PostgreSQL, a proxy before each
dependency. Feeds are asked for at a quarter of what eight callers get, each within half a second, with likes
beside them, so that users' vectors do not hold for long. Each dependency, and then all of them at once, is
killed (over and over), stopped by SIGSTOP, and cut off, for ten seconds each; the next one follows when feeds
have been whole again for a second. Before each of the four, nothing fails for as long: **where feeds are slow
or fail already then, others use the machine**, and all other figures are in doubt.

A good feed came within its deadline, is not empty, and shows no video twice. The goal: 99.9 % of them, none
empty, and no interaction that was acknowledged and is not in the log.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keek.aio
from benchmarks.dependencies import Dependency, Fault
from benchmarks.fault_load import PAGE_SIZE, FaultLoad, Feed, Tally
from benchmarks.fault_stage import Stage, open_fault_stage
from benchmarks.open_loop import percentile
from benchmarks.servers import report

_GOAL: Final = 0.999
_DEADLINE_S: Final = 0.5
_CALLERS: Final = 8
_CAPACITY_S: Final = 4.0
_BEFORE_S: Final = 3.0
_WHOLE_S: Final = 1.0
"""Feeds must have been whole for so long to be whole again."""
_LONGEST_S: Final = 40.0
"""To wait for that."""
_POLL_S: Final = 0.1


def main() -> None:
    """Prints one JSON object, also to benchmarks/results/faults.json; exits with 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description="faults of what feeds depend on")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each fault (default: 10)")
    parser.add_argument("--per-second", type=float, help="feeds (default: a quarter of the capacity)")
    parser.add_argument("--only", default="", help="faults whose names contain this (default: all)")
    parser.add_argument("--quick", action="store_true", help="3 s each")
    arguments = parser.parse_args()
    seconds = 3.0 if arguments.quick else arguments.seconds
    with tempfile.TemporaryDirectory(prefix="keek-faults-") as directory:
        result = asyncio.run(_run(Path(directory), seconds, arguments.per_second, arguments.only))
    report("faults", result)
    sys.exit(not result["passed"])


@dataclass(frozen=True, slots=True)
class Window:
    """One fault."""

    name: str
    began_s: float
    ended_s: float
    over_s: float
    """When the next one may begin."""


async def _run(directory: Path, seconds: float, per_s: float | None, only: str) -> dict[str, Any]:
    async with open_fault_stage(directory) as stage:
        await stage.cache_feeds()
        load_average = [round(os.getloadavg()[0], 1)]
        capacity = await _capacity(stage.server.address)
        per_s = per_s or capacity / 4
        said = [each.said for each in stage.dependencies.values()]
        load = FaultLoad(stage.server.address, stage.video_ids, said, per_s=per_s, deadline_s=_DEADLINE_S)
        async with load.running() as tally:
            began_s = time.perf_counter()
            await asyncio.sleep(_BEFORE_S)
            before = tally.between(began_s, time.perf_counter())
            windows: list[Window] = []
            for name in (*stage.dependencies, "all"):
                faults = [fault for fault in Fault if only in f"{name} {fault.value}"]
                if faults:
                    windows.append(await _control(name, seconds))
                windows += [await _suffer(stage, tally, name, fault, seconds) for fault in faults]
        load_average.append(round(os.getloadavg()[0], 1))
        lost = len(tally.acknowledged) - await stage.recorded(tally.acknowledged)
    return result_of(tally, windows, lost) | {
        "offered_per_s": round(per_s, 1),
        "capacity_per_s": round(capacity, 1),
        "deadline_ms": _DEADLINE_S * 1e3,
        "before": _figures(before),
        "load_average_before_and_after": load_average,
        "cores": os.cpu_count(),
    }


async def _capacity(address: str) -> float:
    """Feeds a second that eight callers get, who wait for their answers."""
    until_s = time.perf_counter() + _CAPACITY_S

    async def call(number: int) -> int:
        done = 0
        async with keek.aio.Client(address) as client:
            while time.perf_counter() < until_s:
                await client.list_feed(f"u{number + _CALLERS * (done % 30)}", page_size=PAGE_SIZE)
                done += 1
        return done

    return sum(await asyncio.gather(*map(call, range(_CALLERS)))) / _CAPACITY_S


async def _control(name: str, seconds: float) -> Window:
    """Nothing fails: what this machine gives at this time."""
    _say(f"nothing for {seconds:g} s")
    began_s = time.perf_counter()
    await asyncio.sleep(seconds)
    ended_s = time.perf_counter()
    return Window(f"nothing, before {name}", began_s, ended_s, ended_s)


async def _suffer(stage: Stage, tally: Tally, name: str, fault: Fault, seconds: float) -> Window:
    suffering = stage.dependencies.values() if name == "all" else [stage.dependencies[name]]
    _say(f"{name} {fault.value} for {seconds:g} s")
    began_s = time.perf_counter()
    async with AsyncExitStack() as faults:
        for dependency in suffering:
            await faults.enter_async_context(dependency.suffering(fault))
        await asyncio.sleep(seconds)
    ended_s = time.perf_counter()
    await _recover(tally, list(suffering))
    return Window(f"{name} {fault.value}", began_s, ended_s, time.perf_counter())


async def _recover(tally: Tally, dependencies: list[Dependency]) -> None:
    """Waits until all answer, and feeds have been whole for a while."""

    async def answers() -> bool:
        return all([await each.process.service.ready(each.process.pid) for each in dependencies])

    async def is_whole() -> bool:
        return are_whole(tally, answering_s, time.perf_counter())

    deadline_s = time.perf_counter() + _LONGEST_S
    await _until(answers, deadline_s)
    answering_s = time.perf_counter()
    await _until(is_whole, deadline_s)


async def _until(holds: Callable[[], Awaitable[bool]], deadline_s: float) -> None:
    while not await holds():
        if time.perf_counter() > deadline_s:
            _say(f"feeds are not whole again after {_LONGEST_S:g} s")
            return
        await asyncio.sleep(_POLL_S)


def are_whole(tally: Tally, since_s: float, now_s: float) -> bool:
    """Whether no feed of the last second lacked anything, all of which everything has answered."""
    late = tally.between(max(since_s, now_s - _WHOLE_S), now_s)
    return now_s - since_s > _WHOLE_S and bool(late) and not any(feed.named or feed.error for feed in late)


def result_of(tally: Tally, windows: list[Window], lost: int) -> dict[str, Any]:
    """What is reported of the feeds and of the interactions, of which so many are lost."""
    feeds = len(tally.feeds)
    good = sum(feed.is_good for feed in tally.feeds)
    empty = sum(not feed.error and not feed.items for feed in tally.feeds)
    return {
        "feeds": feeds,
        "ok_within_deadline": good,
        "errors": sum(bool(feed.error) for feed in tally.feeds),
        "empty": empty,
        "errors_by_kind": Counter(feed.error for feed in tally.feeds if feed.error),
        "good_share": round(good / max(1, feeds), 5),
        "passed": bool(windows) and good >= _GOAL * feeds and not empty and not lost,
        "interactions": {
            "acknowledged": len(tally.acknowledged),
            "refused": tally.refused,
            "acknowledged_and_lost": lost,
        },
        "faults": {window.name: _of(window, tally) for window in windows},
    }


def _of(window: Window, tally: Tally) -> dict[str, Any]:
    during = tally.between(window.began_s, window.ended_s)
    after = tally.between(window.ended_s, window.over_s)
    unwhole_s = [feed.sent_s for feed in after if feed.named or feed.error]
    return {
        **_figures(during),
        "after": _figures(after),
        "whole_again_s": round(max(unwhole_s, default=window.ended_s) - window.ended_s, 1),
    }


def _figures(feeds: list[Feed]) -> dict[str, Any]:
    latencies_ms = [feed.latency_s * 1e3 for feed in feeds if not feed.error]
    return {
        "feeds": len(feeds),
        "ok_within_deadline": sum(feed.is_good for feed in feeds),
        "errors": Counter(feed.error for feed in feeds if feed.error),
        "empty": sum(not feed.error and not feed.items for feed in feeds),
        "repeated": sum(feed.repeated for feed in feeds),
        "p50_ms": _percentile(latencies_ms, 50),
        "p99_ms": _percentile(latencies_ms, 99),
        "max_ms": round(max(latencies_ms, default=0.0), 1),
        "named": Counter(name for feed in feeds for name in feed.named),
    }


def _percentile(values: list[float], percent: int) -> float | None:
    return round(percentile(values, percent), 1) if len(values) > 1 else None


def _say(text: str) -> None:
    print(f"{time.strftime('%X')} {text}", file=sys.stderr)


if __name__ == "__main__":
    main()
