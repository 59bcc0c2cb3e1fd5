"""Reads videos from Parquet: the columns of a CSV, and `clip_vector`, a batch of rows at a time.

pyarrow is imported when a Parquet file is read, and not before: the client does not need it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from keek.cli.importing.journal import Ranges
from keek.cli.importing.rows import COLUMNS, Line, Malformed, Row, Unread, named_columns
from keek.v1.video_service_pb2 import Video

PARQUET_COLUMNS: Final = (*COLUMNS, "clip_vector")

_MAGIC: Final = b"PAR1"
_BATCH_ROWS: Final = 1024
"""Their clip vectors as float32 are 2 MiB; with more, numpy waits for memory (twice as slow at 4,096)."""
_BUFFER_BYTES: Final = 1 << 20


class TableError(Exception):
    """A table that cannot be read at all."""


def is_parquet(path: Path) -> bool:
    """Whether a file begins as Parquet does.

    Raises:
        OSError: It cannot be read.
    """
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def count_rows(path: Path) -> int:
    """
    Raises:
        TableError: As `read_rows`.
    """
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def read_rows(path: Path, done: Ranges | None = None) -> Iterator[Line]:
    """Every row, its 1-based number being its line, but for those in `done`.

    Raises:
        TableError: pyarrow is missing, the file is damaged, or a column has the wrong type.
    """
    with _opened(path) as file:
        names = _names(file)
        if unread := tuple(each for each, name in names.items() if name not in PARQUET_COLUMNS):
            yield Unread(unread)
        wanted = [original for original, name in names.items() if name in PARQUET_COLUMNS]
        first = 1
        for batch in _batches(file, wanted):
            for start, end in (done or Ranges()).gaps(first, first + batch.num_rows - 1):
                part = batch.slice(start - first, end - start + 1)
                yield from _rows({names[name]: part.column(name) for name in wanted}, start, end)
            first += batch.num_rows


def _opened(path: Path) -> Any:
    try:
        import numpy  # noqa: F401 - what pyarrow's columns become
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TableError(f"Parquet needs pyarrow: pip install 'keek[parquet]' ({error})") from error
    try:
        # Without pre-buffering: it would read a whole row group into memory.
        return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)
    except pyarrow.ArrowException as error:
        raise TableError(str(error)) from error


def _names(file: Any) -> dict[str, str]:
    """Each column's name in the file, and the one that is used here."""
    originals = file.schema_arrow.names
    try:
        return dict(zip(originals, named_columns(originals, PARQUET_COLUMNS), strict=True))
    except ValueError as error:
        raise TableError(str(error)) from error


def _batches(file: Any, columns: list[str]) -> Iterator[Any]:
    import pyarrow

    try:
        yield from file.iter_batches(batch_size=_BATCH_ROWS, columns=columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise TableError(str(error)) from error


def _rows(columns: dict[str, Any], first: int, last: int) -> Iterator[Row | Malformed]:
    from keek.cli.importing import arrow_columns as read

    count = last - first + 1
    bad: dict[int, str] = {}
    try:
        ids = read.texts(columns["video_id"], bad)
        owners, titles, languages, regions, files = (
            read.texts(columns[name], bad) if name in columns else [""] * count
            for name in ("owner", "title", "language", "region", "file")
        )
        tags: Sequence[Sequence[str]] = read.tags(columns["tags"], bad) if "tags" in columns else [()] * count
        durations = read.durations_s(columns["duration"], bad) if "duration" in columns else [0.0] * count
        times = read.times(columns["create_time"], bad) if "create_time" in columns else [None] * count
        vectors = read.vectors(columns["clip_vector"], bad) if "clip_vector" in columns else [b""] * count
    except read.ColumnError as error:
        raise TableError(str(error)) from error
    fields = zip(ids, owners, tags, durations, titles, languages, regions, times, vectors, strict=True)
    for place, (video_id, owner, tag, duration, title, language, region, time, vector) in enumerate(fields):
        if not video_id or place in bad:
            yield Malformed(first + place, bad.get(place, "video_id is empty"))
            continue
        video = Video(
            video_id=video_id,
            owner_id=owner,
            tags=tag,
            duration_s=duration,
            title=title,
            language=language,
            region=region,
            create_time=time,
            clip_vector=vector,
        )
        yield Row(first + place, video, files[place])
