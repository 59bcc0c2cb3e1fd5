"""Reads videos from CSV: `video_id,tags,duration,owner`, and what else of COLUMNS is present."""

import codecs
import csv
import math
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from keek.cli.importing.rows import (
    COLUMNS,
    Line,
    Malformed,
    Row,
    Unread,
    named_columns,
    parse_time,
    split_tags,
)
from keek.messages import timestamp
from keek.v1.video_service_pb2 import Video


def read_videos(path: Path, done: Container[int] = ()) -> Iterator[Line]:
    """Every line of a UTF-8 file with a header, one video a line; empty lines are passed over.

    So are the lines whose numbers are in `done`.

    Durations are in seconds; tags are a JSON list, or separated by `|`, `;` or `,` (the last
    within quotes); times are ISO 8601, in UTC unless they say otherwise. A file without a
    readable header gives one Malformed and ends.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        yield from _read(file, done)


def _read(file: BinaryIO, done: Container[int]) -> Iterator[Line]:
    try:
        header = _header(file.readline())
    except (ValueError, csv.Error) as error:
        yield Malformed(1, _reason(error))
        return
    if unread := tuple(name for name in header if name not in COLUMNS):
        yield Unread(unread)
    # A line is parsed by itself, so that a quote that is never closed spoils its own line alone.
    for number, line in enumerate(file, start=2):
        if number not in done and line.strip():
            yield _row(number, line, header)


def _header(line: bytes) -> list[str]:
    return named_columns(name.strip() for name in _fields(line.removeprefix(codecs.BOM_UTF8)))


def _row(number: int, line: bytes, header: list[str]) -> Row | Malformed:
    try:
        fields = _named(_fields(line), header)
        return Row(number, _video(fields), fields.get("file", "").strip())
    except (ValueError, csv.Error) as error:
        return Malformed(number, _reason(error))


def _named(fields: list[str], header: list[str]) -> dict[str, str]:
    if len(fields) != len(header):
        raise ValueError(f"{len(fields)} columns where {len(header)} are expected")
    return dict(zip(header, fields, strict=True))


def _reason(error: Exception) -> str:
    return "not valid UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _fields(line: bytes) -> list[str]:
    return next(csv.reader([line.decode().rstrip("\r\n")], skipinitialspace=True, strict=True), [])


def _video(fields: Mapping[str, str]) -> Video:
    video = Video(
        video_id=fields["video_id"].strip(),
        owner_id=fields.get("owner", "").strip(),
        tags=split_tags(fields.get("tags", "").strip()),
        duration_s=_duration_s(fields.get("duration", "").strip()),
        title=fields.get("title", "").strip(),
        language=fields.get("language", "").strip(),
        region=fields.get("region", "").strip(),
    )
    if not video.video_id:
        raise ValueError("video_id is empty")
    if time := fields.get("create_time", "").strip():
        video.create_time.CopyFrom(timestamp(parse_time(time)))
    return video


def _duration_s(text: str) -> float:
    if not text:
        return 0.0
    try:
        duration_s = float(text)
    except ValueError:
        duration_s = math.nan
    if not math.isfinite(duration_s):
        raise ValueError(f"duration {text!r} is not a number of seconds")
    return duration_s
