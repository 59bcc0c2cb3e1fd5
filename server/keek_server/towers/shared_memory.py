"""POSIX shared memory that is given to another process by name, once."""

import mmap
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

_FOLDER = Path("/dev/shm")  # noqa: S108 - where Linux keeps POSIX shared memory; names there are random


class SharedMemory:
    """A segment. Its name exists within the `with` block; the memory lasts as long as anyone maps it.

    `multiprocessing.shared_memory` would keep the name for the segment's whole life, and start
    a process to remove it.
    """

    def __init__(self, size_bytes: int) -> None:
        """
        Raises:
            OSError: There is no shared memory, or not enough left: what is short is noticed here,
                not when it is written to.
        """
        self.name = f"keek-lanes-{secrets.token_hex(16)}"
        """As `shm_open` takes it, less the leading slash."""
        self._path = _FOLDER / self.name
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(file, 0, size_bytes)
            memory = mmap.mmap(file, size_bytes)
        except OSError:
            self._path.unlink()
            raise
        finally:
            os.close(file)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8)
        """uint8 [size_bytes], writable."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Takes the name away."""
        self._path.unlink(missing_ok=True)
