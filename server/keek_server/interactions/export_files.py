"""The files that the log is exported to."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from keek_server.errors import SetupError
from keek_server.files import written_aside
from keek_server.interactions.csv_lines import (
    ACTIONS,
    CSV_HEADER,
    CSV_HEADER_WATCHED,
    csv_line,
    csv_line_watched,
)
from keek_server.interactions.export import ExportedInteraction

Format = Literal["csv", "parquet"]
Write = Callable[[Sequence[ExportedInteraction]], None]
"""Adds rows to a file."""

STANDARD_OUTPUT = "-"

_TIME = pa.timestamp("us", "UTC")
PARQUET_SCHEMA = pa.schema(
    [
        pa.field("seq", pa.int64(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("video_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("event_time", _TIME, nullable=False),
        pa.field("record_time", _TIME, nullable=False),
        pa.field("region", pa.string(), nullable=False),  # empty when unknown
        pa.field("tags", pa.list_(pa.string()), nullable=False),
        pa.field("watched_s", pa.float64()),  # null when unknown
    ]
)
"""The fields of ExportedInteraction, in their order; `watched_ms` in seconds."""


@contextmanager
def open_export(format_: Format, out: str, *, watched: bool = False) -> Iterator[Write]:
    """Opens the file that is exported to; it is there, whole, when the block has ended.

    Args:
        format_: `csv` is the prototype's `interaction_log.csv`, `parquet` has every column.
        out: A path, or `-` for standard output, which takes CSV alone.
        watched: Whether a CSV says how long videos were watched, in a column that the prototype's has not.

    Raises:
        SetupError: When it cannot be written, now or later.
    """
    if out == STANDARD_OUTPUT and format_ == "parquet":
        raise SetupError("Parquet needs a file: standard output takes csv alone")
    try:
        with _target(out) as file, _WRITERS[format_, watched](file) as write:
            yield write
    except OSError as error:
        raise SetupError(f"cannot write to {out}: {error.strerror or error}") from error


@contextmanager
def _target(out: str) -> Iterator[BinaryIO]:
    if out == STANDARD_OUTPUT:
        # A descriptor of its own, so that a reader that is gone fails here and not once more at exit.
        with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as file:
            yield file
        return
    path = Path(out).resolve()  # a link stays one: the file behind it is replaced
    if path.exists() and not path.is_file():
        raise SetupError(f"cannot write to {out}: it is no file")
    with written_aside(path, path.with_name(f".{path.name}.{os.getpid()}.tmp")) as file:
        yield file


@contextmanager
def _csv(file: BinaryIO) -> Iterator[Write]:
    def write(rows: Sequence[ExportedInteraction]) -> None:
        lines = (csv_line(row.user_id, row.video_id, row.kind, row.event_time_us) for row in rows)
        file.write("".join(lines).encode())

    file.write(CSV_HEADER.encode())
    yield write


@contextmanager
def _csv_watched(file: BinaryIO) -> Iterator[Write]:
    def write(rows: Sequence[ExportedInteraction]) -> None:
        lines = (
            csv_line_watched(row.user_id, row.video_id, row.kind, row.event_time_us, row.watched_ms)
            for row in rows
        )
        file.write("".join(lines).encode())

    file.write(CSV_HEADER_WATCHED.encode())
    yield write


@contextmanager
def _parquet(file: BinaryIO) -> Iterator[Write]:
    def write(rows: Sequence[ExportedInteraction]) -> None:
        if rows:
            writer.write_table(_arrow(rows))

    with pq.ParquetWriter(file, PARQUET_SCHEMA, compression="zstd") as writer:
        yield write


_WRITERS = {
    ("csv", False): _csv,
    ("csv", True): _csv_watched,
    ("parquet", False): _parquet,
    ("parquet", True): _parquet,
}


def _arrow(rows: Sequence[ExportedInteraction]) -> pa.Table:
    seqs, event_ids, users, videos, kinds, *others, watched = zip(*rows, strict=True)
    watched_s = (None if own is None else own / 1000 for own in watched)
    columns = [
        *(seqs, map(str, event_ids), users, videos, (ACTIONS[kind] for kind in kinds)),
        *(*others, watched_s),
    ]
    arrays = [
        pa.array(list(column), field.type) for column, field in zip(columns, PARQUET_SCHEMA, strict=True)
    ]
    return pa.table(arrays, PARQUET_SCHEMA)
