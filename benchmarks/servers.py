"""Servers that a benchmark starts for itself, and results that it leaves."""

import json
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from keek_server.embedded.processes import SupervisedProcess
from keek_server.embedded.redis import EmbeddedRedis

RESULTS = Path("benchmarks/results")


@asynccontextmanager
async def running_redis(*, ready_timeout_s: float = 30.0) -> AsyncIterator[SupervisedProcess[EmbeddedRedis]]:
    """A Redis-compatible server of one's own, restarted empty when it dies, until the block is left."""
    with tempfile.TemporaryDirectory(prefix="keek-redis-") as name:
        directory = Path(name)
        process = SupervisedProcess(
            EmbeddedRedis(directory),
            mark=secrets.token_hex(8),
            log_path=directory / "redis.log",
            ready_timeout_s=ready_timeout_s,
        )
        await process.start()
        try:
            yield process
        finally:
            await process.stop()


def report(name: str, result: Mapping[str, object]) -> None:
    """Prints a result as the last line, and keeps it as a file."""
    text = json.dumps(result)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n", "utf-8")
    print(text)
