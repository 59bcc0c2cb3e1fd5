"""What an import has done already, in a file beside its input: a line for each acknowledged part.

A line is written when the server has acknowledged, in one write at the end of the file. So a
program that is killed at any moment has at worst done a little more than the file says, and
doing that again changes nothing.
"""

import json
import os
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

SUFFIX: Final = ".keek-import"

_VERSION: Final = 1


@dataclass(slots=True)
class Counts:
    """What became of lines or files."""

    created_count: int = 0
    updated_count: int = 0
    uploaded_count: int = 0
    unchanged_count: int = 0
    """Files that had been uploaded before."""
    refused_count: int = 0
    """By the server, or because they are no videos."""

    def add(self, other: "Counts") -> None:
        """Sums both."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)


class Ranges:
    """A set of whole numbers, made of few ranges."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        """Ranges are (first, last), both included, in any order; they may overlap."""
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in sorted(ranges):
            if self._lasts and first <= self._lasts[-1] + 1:
                self._lasts[-1] = max(last, self._lasts[-1])
            else:
                self._firsts.append(first)
                self._lasts.append(last)

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int)
        place = bisect_right(self._firsts, number) - 1
        return place >= 0 and number <= self._lasts[place]

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last in self)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._lasts, strict=True)

    def gaps(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The ranges of what is missing from `first` to `last`, both included."""
        for start, end in self:
            if end < first:
                continue
            if start > last:
                break
            if first < start:
                yield first, start - 1
            first = end + 1
        if first <= last:
            yield first, last


FileKey = tuple[str, int, int]
"""Path below the folder, size in bytes, time of the last change in nanoseconds."""


class Journal:
    """The state file of one import; threads may share it."""

    def __init__(self, path: Path, identity: Mapping[str, object], *, restart: bool = False) -> None:
        """Reads what an earlier run has done, when it was the same import.

        Args:
            path: The state file.
            identity: What must be the same for that: the input's size and time, the server, options.
            restart: Do not trust it in any case.

        Raises:
            OSError: The state file cannot be made.
        """
        self._path: Final = path
        self._lock: Final = threading.Lock()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self.counts: Final = Counts()
        self.lines = Ranges()
        """Numbers of the lines that are done."""
        self.files: set[FileKey] = set()
        """The files that are done."""
        header = json.dumps({"version": _VERSION, **identity}, sort_keys=True)
        content = path.read_bytes()
        known, _, entries = content.partition(b"\n")
        self.is_resumed: Final = not restart and known == header.encode()
        self.was_stale: Final = bool(content) and not restart and not self.is_resumed
        """Whether there was a state file, of another import."""
        if self.is_resumed:
            self._load(entries)
        else:
            os.ftruncate(self._descriptor, 0)
            self._write(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1

    def _load(self, entries: bytes) -> None:
        # Of a write that was cut short nothing counts, and the next line must begin anew.
        whole, newline, _ = entries.rpartition(b"\n")
        os.ftruncate(
            self._descriptor, os.fstat(self._descriptor).st_size - len(entries) + len(whole + newline)
        )
        ranges: list[tuple[int, int]] = []
        for line in whole.splitlines():
            entry: dict[str, Any] = json.loads(line)
            ranges.extend((first, last) for first, last in entry.get("lines", ()))
            if "file" in entry:
                path, size_bytes, mtime_ns = entry["file"]
                self.files.add((path, size_bytes, mtime_ns))
            self.counts.add(Counts(**entry["counts"]))
        self.lines = Ranges(ranges)

    def lines_done(self, lines: Iterable[int], counts: Counts) -> None:
        """These lines were acknowledged."""
        self._write(json.dumps({"lines": list(Ranges((n, n) for n in lines)), "counts": _brief(counts)}))

    def file_done(self, key: FileKey, counts: Counts) -> None:
        """This file was acknowledged."""
        self._write(json.dumps({"file": key, "counts": _brief(counts)}))

    def remove(self) -> None:
        """The import is complete."""
        self._path.unlink(missing_ok=True)

    def _write(self, line: str) -> None:
        with self._lock:
            # A thread may end its part after an interrupted program has closed the file.
            if self._descriptor >= 0:
                os.write(self._descriptor, line.encode() + b"\n")


def _brief(counts: Counts) -> dict[str, int]:
    return {name: count for name, count in asdict(counts).items() if count}
