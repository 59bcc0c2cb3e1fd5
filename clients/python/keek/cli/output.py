"""What the command line prints: JSON for programs, aligned tables for people."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from keek.errors import InvalidArgumentError
from keek.v1.feed_service_pb2 import Degradation, FeedSource

Cell = str | int | float

_GAP: Final = "  "


def print_json(value: Message | Mapping[str, object]) -> None:
    """One JSON object on one line; messages with the field names of the proto files."""
    if isinstance(value, Message):
        text = MessageToJson(
            value,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
            indent=None,
            ensure_ascii=False,
        )
    else:
        text = json.dumps(value, ensure_ascii=False)
    print(text, flush=True)


def note(text: str) -> None:
    """A line beside the answer, on stderr, so that what reads stdout gets the answer alone."""
    print(printable(text), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """`text` without what could move the cursor or break the line: others write titles and tags."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def source_name(source: FeedSource.ValueType) -> str:
    """`personalised` for FEED_SOURCE_PERSONALISED; the number of a source newer than this client."""
    if source not in FeedSource.values():
        return str(source)
    return FeedSource.Name(source).removeprefix("FEED_SOURCE_").lower()


def note_degradations(degradations: Iterable[Degradation]) -> None:
    """Says which sources could not do their part."""
    for degradation in degradations:
        replaced = ", ".join(map(source_name, degradation.replaced_by))
        suffix = f"; replaced by {replaced}" if replaced else ""
        note(f"degraded: {source_name(degradation.source)}: {degradation.reason}{suffix}")


_PLAIN_REASONS: Final = ("", "INVALID_FIELDS")


def problem(error: InvalidArgumentError) -> str:
    """What is wrong, as `page_size: must be at most 100`, or `TRUNCATED: its end is missing`."""
    if error.reason not in _PLAIN_REASONS:
        return f"{error.reason}: {'; '.join(v.description for v in error.violations) or error.message}"
    return "; ".join(f"{v.field}: {v.description}" for v in error.violations) or error.message


class Table:
    """Rows under one header, numbers to the right; the first rows set the widths.

    Rows may come in several portions, as a stream brings them.
    """

    def __init__(self, *headers: str) -> None:
        self._headers: Final = headers
        self._widths: list[int] = []

    def add(self, rows: Iterable[Sequence[Cell]]) -> None:
        """Prints rows; nothing, not even the header, before the first one."""
        cells = [[(_text(cell), not isinstance(cell, str)) for cell in row] for row in rows]
        if cells and not self._widths:
            self._widths = [
                max(len(header), *(len(row[place][0]) for row in cells))
                for place, header in enumerate(self._headers)
            ]
            numeric = [is_number for _, is_number in cells[0]]
            self._print(list(zip(self._headers, numeric, strict=True)))
        for row in cells:
            self._print(row)

    def _print(self, cells: Sequence[tuple[str, bool]]) -> None:
        padded = (
            text.rjust(width) if is_number else text.ljust(width)
            for (text, is_number), width in zip(cells, self._widths, strict=True)
        )
        print(_GAP.join(padded).rstrip(), flush=True)


def _text(cell: Cell) -> str:
    return f"{cell:.6g}" if isinstance(cell, float) else printable(str(cell))
