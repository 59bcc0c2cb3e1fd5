"""Calls at a rate that does not wait for answers, made by ghz, and what became of each."""

import asyncio
import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

_CONNECTIONS: Final = 8
_CALL_S: Final = 1.0
_GRACE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call."""

    sent: float
    """Seconds of the clock on the wall."""
    latency_s: float
    code: str
    """`OK`, `ResourceExhausted`, ..."""


@dataclass(frozen=True, slots=True)
class Run:
    """All calls of one run, in the order in which they were sent."""

    calls: list[Call]
    seconds: float

    @property
    def per_s(self) -> float:
        """Calls that were sent a second."""
        return len(self.calls) / self.seconds

    @property
    def goodput(self) -> float:
        """Good answers a second."""
        return len(self.latencies_ms()) / self.seconds

    def latencies_ms(self) -> list[float]:
        """Of the good answers."""
        return [call.latency_s * 1e3 for call in self.calls if call.code == "OK"]

    def summary(self) -> dict[str, Any]:
        """Rates a second, latencies in milliseconds, and calls by status."""
        good = self.latencies_ms()
        return {
            "offered_per_s": round(self.per_s, 1),
            "goodput_per_s": round(self.goodput, 1),
            "p50_ms": round(percentile(good, 50), 1),
            "p99_ms": round(percentile(good, 99), 1),
            "codes": Counter(call.code for call in self.calls),
        }


async def open_loop(
    ghz: Path, address: str, method: str, data: Mapping[str, Any], *, per_s: float, seconds: float
) -> Run:
    """Calls at a steady rate, whether those before have been answered or not.

    Args:
        ghz: The program.
        address: Of the server, which has reflection.
        method: As `keek.v1.FeedService/ListFeed`.
        data: The request, with ghz's templates.
        per_s: Calls a second.
        seconds: How long.
    """
    # As many as can be under way until the last of them runs out of time.
    workers = max(_CONNECTIONS, int(per_s * _CALL_S))
    load = ["--async", "--rps", f"{per_s:.0f}", "--total", f"{per_s * seconds:.0f}"]
    return await _ghz(ghz, address, method, data, workers, load, seconds)


async def closed_loop(
    ghz: Path, address: str, method: str, data: Mapping[str, Any], *, callers: int, calls: int
) -> Run:
    """Callers that each wait for their answer before they call again."""
    return await _ghz(ghz, address, method, data, callers, ["--total", str(calls)], _GRACE_S)


async def _ghz(
    ghz: Path,
    address: str,
    method: str,
    data: Mapping[str, Any],
    workers: int,
    load: list[str],
    seconds: float,
) -> Run:
    options = ["--insecure", "--call", method, "--data", json.dumps(data), "--format", "json", "--cpus", "1"]
    options += ["--concurrency", str(workers), "--connections", str(min(workers, _CONNECTIONS))]
    options += ["--timeout", f"{_CALL_S:g}s", "--count-errors", *load, address]
    report = json.loads(await _run(str(ghz), *options, limit_s=seconds + _GRACE_S))
    calls = [
        Call(
            # Nanoseconds are one more digit than Python reads.
            datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", each["timestamp"])).timestamp(),
            each["latency"] / 1e9,
            each["status"],
        )
        for each in report["details"]
    ]
    return Run(sorted(calls, key=lambda call: call.sent), report["total"] / 1e9)


async def _run(*command: str, limit_s: float) -> bytes:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise RuntimeError(f"{command[0]} is missing") from error
    try:
        async with asyncio.timeout(limit_s):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}: {errors.decode()[-500:]}")
    return output


def percentile(values: list[float], percent: int) -> float:
    """Of at least two values; infinite of fewer."""
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else float("inf")
