"""Calls made by ghz: a compiled client, so that what is measured is not the client."""

import asyncio
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from keek_server.errors import SetupError

Latencies: TypeAlias = npt.NDArray[np.float64]

_ROOT = Path(__file__).parents[1]
_LIMIT_S = 240.0
_NS_PER_MS = 1e6


@dataclass(frozen=True, slots=True)
class Load:
    """What is called, and how."""

    call: str
    """As `keek.v1.FeedService/ListFeed`."""
    proto: str
    """The file of the service, below proto/."""
    messages: Path
    """A JSON array of requests, which are taken in turn."""
    total: int
    concurrency: int
    connections: int = 1
    rps: int | None = None
    """Calls a second, whether or not those before are answered; None: each caller waits for its answer."""
    skip_first: int = 0
    """Calls that are made, and not reported."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What ghz reports of one run."""

    count: int
    rps: float
    """Calls that were answered well, a second."""
    latencies_ms: Latencies
    """float64 [n], of those that were."""
    errors: dict[str, int]
    """What went wrong, by status code."""

    def percentile_ms(self, percentage: float) -> float:
        """NaN when nothing was answered well."""
        return float(np.percentile(self.latencies_ms, percentage)) if len(self.latencies_ms) else float("nan")


def ghz_program() -> Path:
    """Builds it where it is missing.

    Raises:
        SetupError: When that fails, as without Go.
    """
    done = subprocess.run(
        [_ROOT / "clients" / "ghz" / "install.sh"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SetupError("ghz cannot be installed: see above")
    return Path(done.stdout.strip())


def write_messages(path: Path, messages: Sequence[Mapping[str, Any]]) -> Path:
    """Requests as ghz's `--data-file` takes them; what is in `{{}}` it fills in for each call."""
    path.write_text(json.dumps(messages), "utf-8")
    return path


async def run_ghz(program: Path, address: str, load: Load) -> Outcome:
    """Makes the calls.

    Raises:
        SetupError: When ghz fails, or takes longer than four minutes.
    """
    process = await asyncio.create_subprocess_exec(
        *_command(program, address, load),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # Its times of calls are those of the zone.
        env={**os.environ, "TZ": "UTC"},
    )
    try:
        async with asyncio.timeout(_LIMIT_S):
            output, problems = await process.communicate()
    except TimeoutError:
        raise SetupError(f"ghz takes longer than {_LIMIT_S:g} s for {load.call}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise SetupError(f"ghz ended with code {process.returncode}: {problems.decode('utf-8', 'replace')}")
    return outcome_of(json.loads(output))


def _command(program: Path, address: str, load: Load) -> list[str]:
    paced = ["--async", "--rps", str(load.rps)] if load.rps else []
    return [
        str(program),
        *("--insecure", "--format", "json", "--count-errors", "--timeout", "10s"),
        *("--import-paths", str(_ROOT / "proto"), "--proto", load.proto, "--call", load.call),
        *("--data-file", str(load.messages), "--skipFirst", str(load.skip_first)),
        *("--total", str(load.total + load.skip_first), "--concurrency", str(load.concurrency)),
        *("--connections", str(load.connections), *paced, address),
    ]


def outcome_of(report: dict[str, Any]) -> Outcome:
    """What ghz's JSON report says."""
    details = report["details"] or []
    good = [each for each in details if each["status"] == "OK"]
    latencies_ms = np.array([each["latency"] for each in good], np.float64) / _NS_PER_MS
    errors = {code: count for code, count in report["statusCodeDistribution"].items() if code != "OK"}
    return Outcome(report["count"], _rps(good, latencies_ms), latencies_ms, errors)


def _rps(good: Sequence[Mapping[str, Any]], latencies_ms: Latencies) -> float:
    """ghz's own figure counts the time of the calls that it does not report, but not them."""
    if not good:
        return 0.0
    ends = np.array([each["timestamp"].removesuffix("Z") for each in good], "datetime64[ns]")
    ends_ms = (ends - ends.min()).astype(np.float64) / _NS_PER_MS
    return 1000.0 * len(good) / float(ends_ms.max() - (ends_ms - latencies_ms).min())
