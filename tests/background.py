"""Tasks that run beside a test."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def beside(job: Coroutine[Any, Any, None]) -> AsyncIterator["asyncio.Task[None]"]:
    """Runs `job` until the block ends, and waits until it has ended, too.

    Otherwise it might still hold a connection when the database is closed after the test, and nobody would
    close that one.

    Raises:
        Exception: What ended the job, when the block ended well.
    """
    task = asyncio.create_task(job)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
