"""One publisher at a time: what another one writes looks like what a crash left, and would be removed."""

import asyncio
import fcntl
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from keek_server.errors import SetupError
from keek_server.settings import Settings

LOCK_FILE: Final = "publish.lock"

_HOLDER_BYTES: Final = 512
_POLL_S: Final = 0.2

logger = logging.getLogger(__name__)


class HeldError(SetupError):
    """Somebody else publishes."""


@asynccontextmanager
async def publishing_in_turn(settings: Settings, run: str, *, wait_s: float = 0.0) -> AsyncIterator[None]:
    """As `publishing_alone`, but waits for somebody else who publishes.

    Args:
        settings: Say where models and releases are.
        run: The run's name, for those who are refused.
        wait_s: For so long at most.
    """
    end = time.monotonic() + wait_s
    async with AsyncExitStack() as stack:
        waits = False
        while True:
            try:
                stack.enter_context(publishing_alone(settings, run))
                break
            except HeldError as error:
                if time.monotonic() >= end:
                    raise
                if not waits:
                    logger.info("waits: %s", str(error).partition(": ")[0])
                waits = True
            await asyncio.sleep(_POLL_S)
        yield


@contextmanager
def publishing_alone(settings: Settings, run: str) -> Iterator[None]:
    """Nobody else publishes into the model repository or the release folder until the block ends.

    A second publisher is refused, and does not wait unless it is told to (`publishing_in_turn`): a fresh
    release is on its way without it, and hourly jobs must not queue up behind one that hangs. The kernel
    gives the locks back however the process ends.

    Args:
        settings: Say where models and releases are.
        run: The run's name, for the one who is refused.

    Raises:
        HeldError: When somebody else publishes, which the message names.
        SetupError: When a folder cannot be written.
    """
    holder = f"run {run} (process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%F %TZ})"
    with ExitStack() as locks:
        # Either may be shared without the other.
        locks.enter_context(_locked(settings.model_repository, holder))
        locks.enter_context(_locked(settings.release_dir, holder, make=True))
        yield


@contextmanager
def _locked(folder: Path, holder: str, *, make: bool = False) -> Iterator[None]:
    lock = _open(folder, make=make)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(lock, _HOLDER_BYTES, 0).decode(errors="replace") or "another run"
            raise HeldError(
                f"{other} is being published into {folder}: publish again when it is done"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, holder.encode()[:_HOLDER_BYTES], 0)
        yield
    finally:
        os.close(lock)


def _open(folder: Path, *, make: bool) -> int:
    """The lock file stays: who finds it gone would lock another one."""
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SetupError(f"cannot write to {folder}: {error.strerror}") from error
