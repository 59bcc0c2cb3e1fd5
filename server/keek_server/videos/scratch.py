"""A local folder for files that are worked on, which goes with its server, however that ends."""

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from keek_server.errors import SetupError

_PREFIX = "uploads-"


@asynccontextmanager
async def open_scratch(parent: Path) -> AsyncIterator[Path]:
    """A new folder in `parent`; those of servers that are gone are removed.

    Raises:
        SetupError: When it cannot be made.
    """
    try:
        folder, lock = await asyncio.to_thread(_make, parent)
    except OSError as error:
        raise SetupError(f"cannot work in {parent}: {error.strerror} (KEEK_SCRATCH_DIR)") from error
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        os.close(lock)


def _make(parent: Path) -> tuple[Path, int]:
    parent.mkdir(parents=True, exist_ok=True)
    # In turns: a folder that is made and not yet locked looks like one that was left.
    with _opened(parent) as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        for left in parent.glob(f"{_PREFIX}*"):
            _remove_if_left(left)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX))
        # Held until this process ends, also by a signal that nobody can catch.
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder, lock


def _remove_if_left(folder: Path) -> None:
    try:
        with _opened(folder) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # in use, gone meanwhile, or another user's


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
