"""One hourly job at a time."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from keek_server.errors import SetupError

LOCK_FILE: Final = "hourly.lock"
_HOLDER_BYTES: Final = 512


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other hourly job works in this folder until the block ends.

    A second one is refused, and does not wait: rounds must not queue up behind one that hangs. The
    kernel gives the lock back however the process ends.

    Raises:
        SetupError: When another one works, which the message names, or the folder cannot be written.
    """
    lock = _open(folder)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(lock, _HOLDER_BYTES, 0).decode(errors="replace") or "another process"
            raise SetupError(f"{other} does the hourly job: this one does nothing") from None
        os.ftruncate(lock, 0)
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%F %TZ},"
        os.pwrite(lock, holder.encode()[:_HOLDER_BYTES], 0)
        yield
    finally:
        os.close(lock)


def _open(folder: Path) -> int:
    """The lock file stays: who finds it gone would lock another one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SetupError(f"cannot write to {folder}: {error.strerror}") from error
