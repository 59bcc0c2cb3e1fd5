"""One stack a data directory, and what a crashed one left there is cleaned up first."""

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from keek_server.embedded import procfs
from keek_server.embedded.triton import remove_shared_memory, shared_memory_prefix
from keek_server.errors import SetupError

_MARK_BYTES = 8


@contextmanager
def claimed(run_dir: Path) -> Iterator[str]:
    """Claims a directory for one stack and yields that stack's random mark.

    The claim is a lock on `stack.lock`, which the kernel gives back however the process
    ends. The file holds the mark of the stack that last ran, so what is left of it is
    found by its mark and nothing else is ever touched. The file itself stays.

    Raises:
        SetupError: another stack runs there, or the directory cannot be written.
    """
    lock = _open_lock(run_dir)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"a stack already runs in {run_dir.parent}: stop it, or set KEEK_DATA_DIR to another"
            raise SetupError(message) from None
        _clean_after(os.pread(lock, 2 * _MARK_BYTES, 0).decode())
        mark = secrets.token_hex(_MARK_BYTES)
        os.pwrite(lock, mark.encode(), 0)
        yield mark
    finally:
        os.close(lock)


def _open_lock(run_dir: Path) -> int:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        return os.open(run_dir / "stack.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SetupError(f"cannot write to {run_dir}: {error.strerror}") from error


def _clean_after(mark: str) -> None:
    """Ends the processes of an earlier stack and frees its shared memory."""
    if re.fullmatch(rf"[0-9a-f]{{{2 * _MARK_BYTES}}}", mark):
        procfs.kill_marked(mark)
        remove_shared_memory(shared_memory_prefix(mark))
