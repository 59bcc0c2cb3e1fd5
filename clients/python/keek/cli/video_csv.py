"""Reads videos from CSV: `video_id,tags,duration,owner`, and `title,create_time` where present."""

import codecs
import csv
import datetime as dt
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from keek.messages import timestamp
from keek.v1.video_service_pb2 import Video

COLUMNS: Final = ("video_id", "tags", "duration", "owner", "title", "create_time")
"""The columns that are read, in any order; only `video_id` must be there."""

ALIASES: Final = {"duration_s": "duration", "owner_id": "owner"}
"""The contract's own names of two of them, which are taken as well."""

_TAG_SEPARATORS: Final = re.compile(r"[|;,]")


@dataclass(frozen=True, slots=True)
class Row:
    """One good line."""

    line: int
    """1-based."""
    video: Video


@dataclass(frozen=True, slots=True)
class Malformed:
    """One line that is not a video."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Unread:
    """Columns of the header that nothing is read from."""

    names: tuple[str, ...]


Line = Row | Malformed | Unread


def read_videos(path: Path) -> Iterator[Line]:
    """Every line of a UTF-8 file with a header, one video a line; empty lines are passed over.

    Durations are in seconds; tags are a JSON list, or separated by `|`, `;` or `,` (the last
    within quotes); times are ISO 8601, in UTC unless they say otherwise. A file without a
    readable header gives one Malformed and ends.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        yield from _read(file)


def _read(file: BinaryIO) -> Iterator[Line]:
    try:
        header = _header(file.readline())
    except (ValueError, csv.Error) as error:
        yield Malformed(1, _reason(error))
        return
    if unread := tuple(name for name in header if name not in COLUMNS):
        yield Unread(unread)
    # A line is parsed by itself, so that a quote that is never closed spoils its own line alone.
    for number, line in enumerate(file, start=2):
        if line.strip():
            yield _row(number, line, header)


def _header(line: bytes) -> list[str]:
    names = [name.strip() for name in _fields(line.removeprefix(codecs.BOM_UTF8))]
    header = [ALIASES.get(name, name) for name in names]
    if "video_id" not in header:
        raise ValueError("the header has no column video_id")
    if twice := [name for name in COLUMNS if header.count(name) > 1]:
        raise ValueError(f"the header has column {twice[0]} twice")
    return header


def _row(number: int, line: bytes, header: list[str]) -> Row | Malformed:
    try:
        return Row(number, _video(_named(_fields(line), header)))
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
        tags=_tags(fields.get("tags", "").strip()),
        duration_s=_duration_s(fields.get("duration", "").strip()),
        title=fields.get("title", "").strip(),
    )
    if not video.video_id:
        raise ValueError("video_id is empty")
    if time := fields.get("create_time", "").strip():
        video.create_time.CopyFrom(timestamp(_time(time)))
    return video


def _tags(text: str) -> list[str]:
    tags = _json_list(text) if text.startswith("[") else _TAG_SEPARATORS.split(text)
    return [tag for tag in dict.fromkeys(tag.strip() for tag in tags) if tag]


def _json_list(text: str) -> list[str]:
    try:
        tags = json.loads(text)
    except ValueError:
        tags = None
    if not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        raise ValueError(f"tags {text!r} are not a JSON list of strings")
    return tags


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


def _time(text: str) -> dt.datetime:
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"create_time {text!r} is not an ISO 8601 time") from None
    return time if time.tzinfo else time.replace(tzinfo=dt.UTC)
