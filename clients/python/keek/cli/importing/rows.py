"""Lines of a table of videos, whatever kind of file it is."""

import datetime as dt
import json
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from keek.v1.video_service_pb2 import Video

COLUMNS: Final = (
    "video_id", "tags", "duration", "owner", "title", "language", "region", "create_time", "file"
)  # fmt: skip
"""The columns that are read, in any order; only `video_id` must be there."""

ALIASES: Final = {"duration_s": "duration", "owner_id": "owner"}
"""The contract's own names of two of them, which are taken as well."""

_TAG_SEPARATORS: Final = re.compile(r"[|;,]")


# Tuples, because a million of them are made.
class Row(NamedTuple):
    """One good line."""

    line: int
    """1-based; in a file without lines, the number of the row."""
    video: Video
    file: str = ""
    """Path of the video's file, relative to the table's folder; empty when only metadata is imported."""


class Malformed(NamedTuple):
    """One line that is not a video."""

    line: int
    reason: str


class Unread(NamedTuple):
    """Columns that nothing is read from."""

    names: tuple[str, ...]


Line = Row | Malformed | Unread


def named_columns(names: Iterable[str], known: Iterable[str] = COLUMNS) -> list[str]:
    """The names of columns as they are used here.

    Raises:
        ValueError: There is no `video_id`, or a known column twice.
    """
    header = [ALIASES.get(name, name) for name in names]
    if "video_id" not in header:
        raise ValueError("the header has no column video_id")
    if twice := [name for name in known if header.count(name) > 1]:
        raise ValueError(f"the header has column {twice[0]} twice")
    return header


def split_tags(text: str) -> list[str]:
    """Tags from a JSON list, or from text where `|`, `;` or `,` separates them.

    Raises:
        ValueError: It begins as a JSON list and is none of strings.
    """
    return clean_tags(_json_list(text) if text.startswith("[") else _TAG_SEPARATORS.split(text))


def clean_tags(tags: Iterable[str]) -> list[str]:
    """Each once, in order, without space around it; empty ones are left out."""
    return [tag for tag in dict.fromkeys(tag.strip() for tag in tags) if tag]


def _json_list(text: str) -> list[str]:
    try:
        tags: list[str] = json.loads(text)
        # JSON can write half a character, a lone surrogate, which no message can hold.
        "".join(tags).encode()
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"tags {text!r} are not a JSON list of strings") from None
    return tags


def parse_time(text: str) -> dt.datetime:
    """A time from ISO 8601, in UTC unless it says otherwise; given in UTC.

    Raises:
        ValueError: It is none, or outside the years 1 to 9999 in UTC.
    """
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"create_time {text!r} is not an ISO 8601 time") from None
    if time.tzinfo is None:
        return time.replace(tzinfo=dt.UTC)
    try:
        return time.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError(f"create_time {text!r} is outside the years 1 to 9999 in UTC") from None
