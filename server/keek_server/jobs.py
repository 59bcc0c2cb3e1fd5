"""Jobs that run in the background as long as the server does."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

logger = logging.getLogger(__name__)

_RESTART_S: Final = 1.0
_ASKED_AGAIN_S: Final = 1.0


@asynccontextmanager
async def running(jobs: Mapping[str, Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
    """A scope in which jobs run, each in a task of its name.

    A job that returns is done. A fault in one is logged, and it starts again.
    """
    tasks = {asyncio.create_task(_keep_running(name, job), name=name) for name, job in jobs.items()}
    try:
        yield
    finally:
        await _cancel(tasks)


async def _keep_running(name: str, job: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            return await job()
        except Exception:
            logger.exception("%s failed, and starts again", name)
            await asyncio.sleep(_RESTART_S)


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    """Asks again where it takes long: in Python 3.11, asyncio.wait_for may lose a cancellation."""
    pending = tasks
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_ASKED_AGAIN_S)
