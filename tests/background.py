"""Tasks that run beside a test, and what holds them up."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest


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


def held_up(patch: pytest.MonkeyPatch, owner: object, name: str) -> tuple[asyncio.Event, asyncio.Event]:
    """Has the next call of an asynchronous method wait; further ones do not.

    Returns:
        What is set when that call has begun, and what to set so that it goes on.
    """
    method = getattr(owner, name)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def late(*arguments: Any) -> Any:
        if not begun.is_set():
            begun.set()
            await go_on.wait()
        return await method(*arguments)

    patch.setattr(owner, name, late)
    return begun, go_on
