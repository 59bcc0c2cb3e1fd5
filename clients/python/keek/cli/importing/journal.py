"""What an import has done already, in a file beside its input: a line for each acknowledged part.

A line is written when the server has acknowledged, in one write at the end of the file. So a
program that is killed at any moment has at worst done a little more than the file says, and
doing that again changes nothing.
"""

import json
import os
import sys
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

if sys.platform != "win32":
    import fcntl

SUFFIX: Final = ".keek-import"

_VERSION: Final = 1
_LAST_LINE: Final = 1 << 53


@dataclass(slots=True)
class Counts:
    """What became of lines or files."""

    created_count: int = 0
    updated_count: int = 0
    uploaded_count: int = 0
    unchanged_count: int = 0
    """Files whose video has a file already."""
    unverified_count: int = 0
    """Of these, the ones that the server does not know by their content: it may be another file."""
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


class ImportRunningError(Exception):
    """Another program imports the same input."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One line of the state file."""

    counts: Counts
    ranges: tuple[tuple[int, int], ...]
    file: FileKey | None

    @classmethod
    def parse(cls, line: bytes) -> "_Entry":
        """
        Raises:
            ValueError: It is not what `Journal` writes.
        """
        match json.loads(line):
            case {"counts": dict(counts), "lines": list(spans), **rest} if not rest:
                return cls(_counts(counts), tuple(map(_range, spans)), None)
            case {"counts": dict(counts), "file": [str(path), int(size_bytes), int(mtime_ns)], **rest} if (
                not rest
            ):
                return cls(_counts(counts), (), (path, size_bytes, mtime_ns))
            case _:
                raise ValueError("neither lines nor a file")


def _counts(given: dict[str, Any]) -> Counts:
    known = {each.name for each in fields(Counts)}
    if not all(name in known and type(count) is int and count >= 0 for name, count in given.items()):
        raise ValueError("unknown counts")
    return Counts(**given)


def _range(span: object) -> tuple[int, int]:
    match span:
        case [int(first), int(last)] if 0 <= first <= last <= _LAST_LINE:
            return first, last
        case _:
            raise ValueError("no range of lines")


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
            ImportRunningError: Another program has it open.
        """
        self._path: Final = path
        self._lock: Final = threading.Lock()
        self._descriptor = _open_alone(path)
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
        self.was_damaged = False
        """Whether lines of it are lost: what they said is done is done again."""
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
        # Nor does anything behind a line that a power cut has spoilt.
        kept = os.fstat(self._descriptor).st_size - len(entries)
        ranges: list[tuple[int, int]] = []
        for line in entries.split(b"\n")[:-1]:
            try:
                entry = _Entry.parse(line)
            except (ValueError, RecursionError):
                self.was_damaged = True
                break
            kept += len(line) + 1
            ranges.extend(entry.ranges)
            if entry.file is not None:
                self.files.add(entry.file)
            self.counts.add(entry.counts)
        os.ftruncate(self._descriptor, kept)
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


def _open_alone(path: Path) -> int:
    """Opened and locked; the kernel gives the lock back however the program ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(descriptor, path)
            if _is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ImportRunningError(f"{path} is in use: the same import runs already") from None


def _is_at(path: Path, descriptor: int) -> bool:
    """False when an import that has just ended removed what was opened."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _brief(counts: Counts) -> dict[str, int]:
    return {name: count for name, count in asdict(counts).items() if count}
