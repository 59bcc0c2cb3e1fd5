"""Columns of raw rows to values: each function checks one column and rejects the rows that break it.

The bounds are those of `keek.v1.Video` and `keek.v1.Interaction`, so that whatever is
imported could have come in over gRPC.
"""

import json
import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from keek_server.clock import iso_us, now_us
from keek_server.interactions.kinds import InteractionKind
from keek_server.videos.locales import LANGUAGE_PATTERN
from keek_training.datasets.raw import Int64Array
from keek_training.datasets.rows import BoolArray, Rows

MAX_ID_BYTES = 128
MAX_TITLE_BYTES = 512
MAX_LANGUAGE_BYTES = 35
MAX_REGION_BYTES = 16
MAX_TAGS = 32
MAX_DURATION_S = 86_400.0
MAX_AHEAD_US = 300 * 1_000_000

_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_UUID = r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_MAX_EXACT = 2.0**53

Float64Array = npt.NDArray[np.float64]


def parse_ids(rows: Rows, name: str) -> pa.Array:
    """Ids: string [rows], not empty, at most 128 bytes of UTF-8."""
    ids = parse_text(rows, name, MAX_ID_BYTES)
    rows.reject(_mask(pc.equal(ids, "")), f"{name} is empty")
    return ids


def parse_text(rows: Rows, name: str, max_bytes: int) -> pa.Array:
    """Text: string [rows], empty where the file has none."""
    if name not in rows:
        return pa.array([""] * rows.count, pa.string())
    text = rows.strings(name)
    rows.reject_values(
        _mask(pc.greater(pc.binary_length(text), max_bytes)), name, f"is longer than {max_bytes} bytes"
    )
    rows.reject_values(_mask(pc.match_substring(text, "\0")), name, "has a NUL character")
    return text


def parse_languages(rows: Rows, name: str) -> pa.Array:
    """BCP 47 language tags: string [rows], empty where the file has none."""
    tags = parse_text(rows, name, MAX_LANGUAGE_BYTES)
    has_form = pc.match_substring_regex(tags, f"^({LANGUAGE_PATTERN})?$")
    rows.reject_values(~_mask(has_form), name, "is not a BCP 47 language tag")
    return tags


def parse_uuids(rows: Rows, name: str) -> pa.Array:
    """UUIDs in the usual spelling: string [rows], null where the file has none."""
    text = pc.utf8_lower(rows.strings(name))
    absent = pc.equal(text, "")
    rows.reject_values(~_mask(pc.or_(absent, pc.match_substring_regex(text, _UUID))), name, "is not a UUID")
    return pc.if_else(absent, None, text)


def parse_numbers(rows: Rows, name: str) -> Float64Array:
    """Numbers: float64 [rows], NaN where the file has none; what says NaN itself is rejected."""
    if name not in rows:
        return np.full(rows.count, np.nan)
    column = rows.column(name)
    if not _is_text(column):
        absent = _mask(pc.is_null(column))
        values = rows.cast(name, pa.float64()).to_numpy(zero_copy_only=False)
        rows.reject_values(~absent & ~np.isfinite(values), name, "is not a number")
        numbers: Float64Array = np.where(absent, np.nan, values)
        return numbers
    text = rows.strings(name)
    numeric = pc.match_substring_regex(text, _NUMBER)
    rows.reject_values(~_mask(numeric) & ~_mask(pc.equal(text, "")), name, "is not a number")
    numbers = pc.if_else(numeric, text, None).cast(pa.float64()).to_numpy(zero_copy_only=False)
    rows.reject_values(np.isinf(numbers), name, "is not a number")
    return numbers


def parse_flags(rows: Rows, name: str) -> BoolArray:
    """Flags: bool [rows]; anything but 0 and 1 is rejected."""
    values = parse_numbers(rows, name)
    rows.reject(np.isnan(values), f"{name} is empty")
    rows.reject_values((values != 0) & (values != 1), name, "is neither 0 nor 1")
    flags: BoolArray = values == 1
    return flags


def parse_durations(rows: Rows, name: str, *, unit_s: float = 1.0) -> npt.NDArray[np.float32]:
    """Durations in seconds: float32 [rows], 0 where unknown, from 0 to a day.

    Args:
        rows: The rows to check.
        name: The column; nothing is known where the file lacks it.
        unit_s: The unit of the column, in seconds.
    """
    durations_s = np.nan_to_num(parse_numbers(rows, name) * unit_s)
    rows.reject_values(durations_s < 0, name, "is negative")
    rows.reject_values(durations_s > MAX_DURATION_S, name, "is longer than a day")
    return np.clip(durations_s, 0, MAX_DURATION_S).astype(np.float32)


def parse_watched(rows: Rows, name: str, kinds: npt.NDArray[np.int8]) -> pa.Array:
    """How long videos were watched, from seconds: int32 [rows], milliseconds, null where the file has none.

    Args:
        rows: The rows to check.
        name: The column, which the file has.
        kinds: int8 [rows]: of views and skips alone there is such a time.
    """
    watched_s = parse_numbers(rows, name)
    known = ~np.isnan(watched_s)
    rows.reject_values(known & ((watched_s < 0) | (watched_s > MAX_DURATION_S)), name, "is not 0 to a day")
    of_neither = ~np.isin(kinds, [InteractionKind.VIEW, InteractionKind.SKIP])
    rows.reject_values(known & of_neither, name, "goes with a view or a skip alone")
    watched_ms = np.round(np.clip(np.nan_to_num(watched_s), 0, MAX_DURATION_S) * 1000)
    return pa.array(watched_ms.astype(np.int32), mask=~known)


def parse_times(rows: Rows, name: str, *, required: bool = True) -> pa.Array:
    """Times: int64 [rows], microseconds since the epoch, null where the file has none.

    Text is ISO 8601, in UTC where it names no zone, or a number. A number counts
    seconds, milliseconds or microseconds since the epoch: which, its size tells
    (from 10^11 and from 10^14 on), which is sure for all times since March 1973.
    Times before 1970 and more than five minutes ahead of now are rejected.
    """
    if name not in rows:
        return pa.nulls(rows.count, pa.int64())
    column = rows.column(name)
    if pa.types.is_temporal(column.type):
        times_us = rows.cast(name, pa.timestamp("us")).cast(pa.int64())
        absent = _mask(pc.is_null(times_us))
        values = pc.fill_null(times_us, 0).to_numpy()
    elif _is_text(column):
        values, absent = _text_times(rows, name)
    else:
        numbers = parse_numbers(rows, name)
        values, absent = _epoch_us(rows, name, numbers), np.isnan(numbers)
    if required:
        rows.reject(absent, f"{name} is empty")
    rows.reject_values(~absent & (values < 0), name, "is before 1970")
    rows.reject_values(~absent & (values > now_us() + MAX_AHEAD_US), name, "is in the future")
    return pa.array(values, mask=absent)


def parse_kinds(rows: Rows, name: str) -> npt.NDArray[np.int8]:
    """Kinds of interaction: int8 [rows], from their names in any case or their numbers."""
    text = pc.utf8_lower(rows.strings(name))
    names = [kind.name.lower() for kind in InteractionKind]
    spellings = pa.array([*names, *(str(int(kind)) for kind in InteractionKind)])
    places = pc.fill_null(pc.index_in(text, value_set=spellings), -1).to_numpy()
    rows.reject(_mask(pc.equal(text, "")), f"{name} is empty")
    rows.reject_values(places < 0, name, f"is not one of {', '.join(names)}")
    kinds: npt.NDArray[np.int8] = np.array([int(kind) for kind in InteractionKind] * 2, np.int8)[places]
    return kinds


def parse_tags(rows: Rows, name: str, separators: str = "|,;") -> list[list[str]]:
    """Tags: a list a row, without repeats; at most 32, each at most 128 bytes.

    Text is split at any of `separators`, or read as a JSON list where it starts with
    a bracket. A column of lists is taken as it is.
    """
    if name not in rows:
        return [[] for _ in range(rows.count)]
    column = rows.column(name)
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        raw: list[object] = column.to_pylist()
    else:
        raw = rows.strings(name).to_pylist()
    pattern = re.compile(f"[{re.escape(separators)}]")
    tags, faults = [], {}
    for row, value in enumerate(raw):
        own, fault = _tags(value, pattern)
        tags.append(own)
        if fault:
            faults[row] = fault
    bad = np.zeros(rows.count, np.bool_)
    bad[list(faults)] = True
    rows.reject(bad, lambda row: f"{name}: {faults[row]}")
    return tags


def _tags(value: object, separators: re.Pattern[str]) -> tuple[list[str], str]:
    """The tags in one value, and what is wrong with them, if anything is."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return [], "a JSON list was started and not finished"
    elif isinstance(value, str):
        value = separators.split(value)
    if not isinstance(value, list):
        return [], ""
    if not all(isinstance(tag, str) for tag in value):
        return [], "not a list of strings"
    tags = [tag for tag in dict.fromkeys(tag.strip() for tag in value) if tag]
    if len(tags) > MAX_TAGS:
        return [], f"{len(tags)} tags where {MAX_TAGS} are allowed"
    if any(len(tag.encode()) > MAX_ID_BYTES or "\0" in tag for tag in tags):
        return [], f"a tag is longer than {MAX_ID_BYTES} bytes or has a NUL character"
    return tags, ""


def _text_times(rows: Rows, name: str) -> tuple[Int64Array, BoolArray]:
    text = rows.strings(name)
    absent = _mask(pc.equal(text, ""))
    numeric = pc.match_substring_regex(text, _NUMBER)
    numbers = pc.if_else(numeric, text, None).cast(pa.float64()).to_numpy(zero_copy_only=False)
    values = _epoch_us(rows, name, numbers)
    other = np.flatnonzero(~_mask(numeric) & ~absent)
    written = [iso_us(value) for value in text.take(pa.array(other)).to_pylist()]
    bad = np.zeros(rows.count, np.bool_)
    bad[other] = [value is None for value in written]
    rows.reject_values(bad, name, "is no time: ISO 8601 or seconds since the epoch are expected")
    values[other] = [value or 0 for value in written]
    return values, absent


def _epoch_us(rows: Rows, name: str, numbers: Float64Array) -> Int64Array:
    """Microseconds from seconds, milliseconds or microseconds; 0 where there is no number."""
    size = np.abs(np.nan_to_num(numbers))
    unit_us = np.select([size < 1e11, size < 1e14], [1e6, 1e3], 1.0)
    times_us = np.nan_to_num(numbers) * unit_us
    rows.reject_values(np.abs(times_us) > _MAX_EXACT, name, "is no time in seconds since the epoch")
    whole: Int64Array = np.rint(np.clip(times_us, -_MAX_EXACT, _MAX_EXACT)).astype(np.int64)
    return whole


def _is_text(column: pa.Array) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _mask(column: pa.Array) -> BoolArray:
    mask: BoolArray = column.to_numpy(zero_copy_only=False)
    return mask
