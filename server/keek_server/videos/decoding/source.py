"""Open files on their way to a child."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from keek_server.errors import UnavailableError
from keek_server.videos.decoding.sniff import HEAD_BYTES


@dataclass(frozen=True, slots=True)
class Source:
    """A file that is open for reading, at its beginning."""

    descriptor: int
    size_bytes: int
    head: bytes
    """The first `HEAD_BYTES`."""


@asynccontextmanager
async def open_file(path: Path) -> AsyncIterator[Source]:
    """
    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    async with _opened(lambda: _open(path)) as source:
        yield source


@asynccontextmanager
async def open_content(content: bytes) -> AsyncIterator[Source]:
    """A file in memory, which has no name.

    Raises:
        UnavailableError: There is no memory, or too much is open.
    """
    async with _opened(lambda: _write(content)) as source:
        yield source


@asynccontextmanager
async def _opened(opening: Callable[[], Source]) -> AsyncIterator[Source]:
    """Opens in a thread; what was opened is closed also when nobody waits for it any more."""
    task = asyncio.create_task(asyncio.to_thread(opening))
    try:
        source = await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_close)
        raise
    try:
        yield source
    finally:
        os.close(source.descriptor)


def _close(opened: asyncio.Task[Source]) -> None:
    if not opened.cancelled() and opened.exception() is None:
        os.close(opened.result().descriptor)


def _open(path: Path) -> Source:
    # Not to wait for the other end where it is a pipe.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file")
    return Source(descriptor, status.st_size, os.pread(descriptor, HEAD_BYTES, 0))


def _write(content: bytes) -> Source:
    try:
        descriptor = os.memfd_create("image", os.MFD_CLOEXEC)
    except OSError as error:
        raise UnavailableError(f"no image can be handed to a decoding process: {error}") from error
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
            file.seek(0)
    except OSError as error:
        os.close(descriptor)
        raise UnavailableError(f"no image can be handed to a decoding process: {error}") from error
    return Source(descriptor, len(content), content[:HEAD_BYTES])
