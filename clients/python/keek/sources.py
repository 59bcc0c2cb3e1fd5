"""The file of an upload: read at any place, by any thread, and never all at once."""

import errno
import os
import stat
import threading
from contextlib import AbstractContextManager
from io import FileIO
from types import TracebackType
from typing import IO, BinaryIO, Final

from keek.errors import FileChangedError

FileLike = str | os.PathLike[str] | BinaryIO
"""A path, or an open binary file that can seek; of the latter everything from its start is meant."""


class Source(AbstractContextManager["Source"]):
    """An open file whose size is known, and must stay."""

    def __init__(self, file: FileLike) -> None:
        """
        Raises:
            OSError: The file cannot be opened, or cannot seek.
        """
        self._owned: Final = isinstance(file, str | os.PathLike)
        self._file: Final = _opened(file)
        self._name: Final = getattr(self._file, "name", "the file")
        # A call that has ended may leave a thread behind that still reads.
        self._lock: Final = threading.Lock()
        self._mark: Final = self._now()
        # Not the size of the file below: an object that decompresses gives more.
        self.size_bytes: Final = self._file.seek(0, os.SEEK_END)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._owned:
            with self._lock:
                self._file.close()

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        """Exactly `size_bytes` from `offset_bytes` on.

        Raises:
            FileChangedError: The file is not what it was when it was opened.
            OSError: It cannot be read.
        """
        with self._lock:
            self._file.seek(offset_bytes)
            content = self._exactly(size_bytes)
            # After reading: then this much was still the old file.
            if len(content) != size_bytes or self._now() != self._mark:
                raise FileChangedError(f"{self._name} changed while it was being uploaded")
        return content

    def _exactly(self, size_bytes: int) -> bytes:
        content = self._file.read(size_bytes)
        # One read of a raw file may give less than is there.
        while len(content) < size_bytes and (more := self._file.read(size_bytes - len(content))):
            content += more
        return content

    def _now(self) -> tuple[int, int] | None:
        """Size in bytes and time of the last change; None of what is no file on a disk."""
        try:
            status = os.fstat(self._file.fileno())
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns


def open_regular(path: str | os.PathLike[str]) -> FileIO:
    """Opens a file to read, unbuffered: what is read goes to gRPC as it is.

    Raises:
        OSError: It cannot be opened, or is none with a content of its own, as a pipe, which could
            also keep the caller waiting for ever.
    """
    file = FileIO(path, "rb", opener=_open_without_waiting)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is not a regular file", os.fspath(path))
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _opened(file: FileLike) -> IO[bytes] | FileIO:
    return open_regular(file) if isinstance(file, str | os.PathLike) else file
