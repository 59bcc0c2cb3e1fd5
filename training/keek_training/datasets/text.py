"""Text files as raw tables: every good line kept, every bad one reported with its number.

A clean file without quotes, the usual shape of a large log, is split by Arrow. Anything
else goes through Python's csv module, which is slower and knows where each line began.
"""

import csv
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from keek_server.errors import SetupError
from keek_training.datasets.dataset import Problem
from keek_training.datasets.raw import RawTable, choose_columns, read_bytes

_MAX_RECORD_LINES = 1000
"""A quoted field that spans more lines than this is taken for a quote that was never closed."""

Record = tuple[int, list[str] | str]
"""The line a record began on, and its fields, or why it has none."""


def read_csv(
    path: Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    *,
    delimiter: str = ",",
    quoting: bool = True,
    rename: Callable[[str], str] = str.strip,
) -> RawTable:
    """Reads the wanted columns of a text file with a header, as strings.

    Args:
        path: UTF-8, with or without a byte-order mark; lines end as they like.
        required: Columns that must be there.
        optional: Columns that are read where present.
        delimiter: One character.
        quoting: Whether double quotes enclose fields, as in RFC 4180.
        rename: Turns a name in the header into the name of a column.

    Raises:
        SetupError: When the file is missing or empty, or lacks a required column.
    """
    data = read_bytes(path)
    records = _records(data, delimiter, quoting)
    line, header = next(records, (1, "nothing"))
    if isinstance(header, str):
        raise SetupError(f"{path} starts with {header}: a header with {', '.join(required)} is expected")
    names = [rename(name) for name in header]
    columns = choose_columns(path, names, required, optional)
    if line == 1 and not (quoting and b'"' in data) and b"\0" not in data:
        try:
            return _read_clean(path, data, names, columns, delimiter)
        except pa.ArrowInvalid:
            pass  # some line is bad, or empty: below it is found out which, and why
    return _collect(path, records, len(names), columns)


def read_split(path: Path, names: Sequence[str], separator: str) -> RawTable:
    """Reads a text file without header or quotes, whose separator may be longer than a character.

    It is taken as UTF-8, or as Latin-1 where it is not UTF-8.

    Raises:
        SetupError: When the file cannot be read.
    """
    data = read_bytes(path)
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    # Not str.splitlines, which also ends lines where a title has one of Unicode's rarer separators.
    lines = enumerate(io.StringIO(text, newline=None), 1)
    split: Iterator[Record] = (
        (number, line.rstrip("\n").split(separator)) for number, line in lines if line.strip()
    )
    return _collect(path, split, len(names), {name: place for place, name in enumerate(names)})


def _read_clean(
    path: Path, data: bytes, names: list[str], columns: dict[str, int], delimiter: str
) -> RawTable:
    """Splits a file in which row i stands on line i + 2; raises ArrowInvalid on any other."""
    # By position: the header may hold names twice that nobody asked for.
    unique = [str(place) for place in range(len(names))]
    wanted = [str(place) for place in columns.values()]
    table = pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(column_names=unique, skip_rows=1),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, quote_char=False),
        convert_options=pa.csv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            strings_can_be_null=False,
        ),
    ).rename_columns(list(columns))
    # Arrow skips empty lines without a word, and ends lines at a lone carriage return too.
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    if table.num_rows + 1 != lines or data.count(b"\r") != data.count(b"\r\n"):
        raise pa.ArrowInvalid("not one row a line")
    return RawTable(path, table, np.arange(2, table.num_rows + 2, dtype=np.int64))


def _collect(path: Path, records: Iterator[Record], width: int, columns: dict[str, int]) -> RawTable:
    lines: list[int] = []
    rows: list[list[str]] = []
    problems: list[Problem] = []
    places = list(columns.values())
    for line, fields in records:
        reason = fields if isinstance(fields, str) else _fault(fields, width)
        if reason:
            problems.append(Problem(path, line, reason))
        else:
            lines.append(line)
            rows.append([fields[place] for place in places])
    values = list(zip(*rows, strict=True)) or [()] * len(columns)
    table = pa.table(
        {name: pa.array(column, pa.string()) for name, column in zip(columns, values, strict=True)}
    )
    return RawTable(path, table, np.array(lines, np.int64), problems)


def _fault(fields: list[str], width: int) -> str:
    """Why these fields are not a row; empty when they are."""
    if len(fields) != width:
        return f"{len(fields)} columns where {width} are expected"
    text = "".join(fields)
    if "\0" in text:
        return "a NUL byte"
    # What is not UTF-8 was decoded to lone surrogates, which nothing else decodes to.
    return "" if text.isascii() or not _SURROGATES.intersection(text) else "not valid UTF-8"


_SURROGATES = frozenset(map(chr, range(0xDC80, 0xDD00)))


class _Lines:
    """The lines of a text, counted, some of which can be handed back to be read again."""

    def __init__(self, text: str) -> None:
        self._source = io.StringIO(text, newline="")
        self._returned: deque[str] = deque()
        self._record: list[str] = []
        self.first = 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self._record) == _MAX_RECORD_LINES:
            raise StopIteration
        line = self._returned.popleft() if self._returned else next(self._source)
        self._record.append(line)
        return line

    def start_record(self) -> None:
        """What is read from here on belongs to one record."""
        self.first += len(self._record)
        self._record = []

    def hand_back(self) -> None:
        """Hands back all lines of the record but its first."""
        self._returned.extendleft(reversed(self._record[1:]))
        del self._record[1:]


def _records(data: bytes, delimiter: str, quoting: bool) -> Iterator[Record]:
    lines = _Lines(data.decode(errors="surrogateescape"))
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
    )
    while True:
        lines.start_record()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is never closed swallows the lines behind it, which may be good.
            lines.hand_back()
            yield lines.first, f"malformed quoting ({error})"
        else:
            if fields:
                yield lines.first, fields
