"""Files that are there whole or not at all, also after a power cut."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def written_aside(path: Path, aside: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends; when it raises, nothing has changed.

    Args:
        path: What is replaced, or made.
        aside: Where it is written until then: in the same folder, and nobody else's.

    Raises:
        OSError: When it cannot be written.
    """
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits.

    Raises:
        OSError: When it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Brings a file to the disk, or for a folder, which files it holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
