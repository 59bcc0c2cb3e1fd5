"""What a file's own structure claims, read without FFmpeg: sizes, durations, and where it should end.

FFmpeg believes one of several headers that may contradict each other, and does not say which. Here
each counts: a file that claims a bad size anywhere has it.
"""

from dataclasses import dataclass
from typing import BinaryIO

from keek_server.errors import BadMediaError, MediaProblem

MAX_ELEMENTS = 200_000
"""Boxes or elements that are looked at; a fragmented file may have two a frame."""


@dataclass(slots=True)
class Claims:
    """The largest claims that were found; 0 where nothing is claimed."""

    duration_s: float = 0.0
    width: int = 0
    height: int = 0
    ends_early: bool = False
    """A part is said to go on behind the end of the file, or is missing altogether."""

    elsewhere: bool = False
    """Its pictures are said to be in another file."""

    def picture(self, width: int, height: int) -> None:
        """One claim of a size in pixels."""
        self.width, self.height = max(self.width, width), max(self.height, height)


class Reader:
    """Reads here and there in a file, and counts how often."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._steps = 0
        self.size_bytes = size_bytes

    def at(self, position: int, length: int) -> bytes:
        """
        Raises:
            BadMediaError: The file has more parts than any real one.
        """
        self._steps += 1
        if self._steps > MAX_ELEMENTS:
            raise BadMediaError(MediaProblem.CORRUPT, "its headers have no end")
        self._file.seek(position)
        return self._file.read(length)
