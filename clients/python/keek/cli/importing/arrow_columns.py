"""Columns of Arrow arrays as lists of what a Video is made of, without a step of Python a value.

Imported only where pyarrow and numpy are. Each function takes one pyarrow.Array; those with `bad`
put the reason of each row that cannot be used there, by its place.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.timestamp_pb2 import Timestamp

from keek.cli.importing.rows import clean_tags, parse_time, split_tags
from keek.messages import timestamp

CLIP_DIMENSION: Final = 512

_NO_TIME: Final = -(1 << 63)

Value = TypeVar("Value")


class ColumnError(Exception):
    """A column whose type has no meaning here."""


def texts(column: Any, bad: dict[int, str]) -> list[str]:
    """Strings without space around them, empty where there is none. Numbers are written out."""
    strings = _cast(column, pa.string())
    try:
        trimmed = pc.utf8_trim_whitespace(strings)
    except pa.ArrowInvalid:
        # Neither Parquet nor a cast looks at what is said to be text already.
        is_text = [_is_text(value) for value in strings.cast(pa.binary()).to_pylist()]
        bad.update({place: "not valid UTF-8" for place, good in enumerate(is_text) if not good})
        trimmed = pc.utf8_trim_whitespace(pc.if_else(pa.array(is_text), strings, None))
    found: list[str] = pc.fill_null(trimmed, "").to_numpy(zero_copy_only=False).tolist()
    return found


def tags(column: Any, bad: dict[int, str]) -> list[list[str]]:
    """From lists of strings, or from text as in CSV."""
    if not _is_list(column.type):
        return _each(texts(column, bad), split_tags, [], bad)
    bad_values: dict[int, str] = {}
    values = texts(column.flatten(), bad_values)
    ends = np.cumsum(_lengths(column))
    for place, reason in bad_values.items():
        bad[int(np.searchsorted(ends, place, side="right"))] = reason
    starts = [0, *ends[:-1].tolist()]
    return [clean_tags(values[start:end]) for start, end in zip(starts, ends.tolist(), strict=True)]


def durations_s(column: Any, bad: dict[int, str]) -> list[float]:
    """Seconds; 0 where there is none."""
    seconds = pc.fill_null(_cast(column, pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    for place in np.flatnonzero(~np.isfinite(seconds)).tolist():
        bad[place] = f"duration '{seconds[place]}' is not a number of seconds"
    finite: list[float] = seconds.tolist()
    return finite


def times(column: Any, bad: dict[int, str]) -> list[Timestamp | None]:
    """From timestamps, in UTC where they have no zone, from dates, or from text as in CSV."""
    if pa.types.is_null(column.type):
        return [None] * len(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return _each(texts(column, bad), lambda text: timestamp(parse_time(text)), None, bad)
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(column.type):
        raise ColumnError(f"create_time is of type {column.type}, not a timestamp")
    in_us = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    moments = pc.fill_null(in_us, _NO_TIME).to_numpy(zero_copy_only=False)
    seconds, rest_us = np.divmod(moments, 1_000_000)
    return [
        None if moment == _NO_TIME else Timestamp(seconds=second, nanos=nanos)
        for moment, second, nanos in zip(
            moments.tolist(), seconds.tolist(), (rest_us * 1000).tolist(), strict=True
        )
    ]


def vectors(column: Any, bad: dict[int, str]) -> list[bytes]:
    """Clip vectors of length 1 as float16, little endian; empty where there is none.

    From lists of CLIP_DIMENSION numbers of any float type, of any length but 0.
    """
    if pa.types.is_null(column.type):
        return [b""] * len(column)
    if not (_is_list(column.type) and pa.types.is_floating(column.type.value_type)):
        raise ColumnError(f"clip_vector is of type {column.type}, not a list of float numbers")
    lengths = _lengths(column)
    is_there = column.is_valid().to_numpy(zero_copy_only=False)
    for place in np.flatnonzero(is_there & (lengths != CLIP_DIMENSION)).tolist():
        bad[place] = f"clip_vector has {lengths[place]} values, not {CLIP_DIMENSION}"
    is_whole = is_there & (lengths == CLIP_DIMENSION)
    values = column.filter(pa.array(is_whole)).flatten().to_numpy(zero_copy_only=False)
    places = np.flatnonzero(is_whole)
    found = values.reshape(-1, CLIP_DIMENSION).astype(np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", found, found))
    # Also false for NaN.
    has_length = (norms > 0) & (norms < np.inf)
    for place in places[~has_length].tolist():
        bad[place] = "clip_vector has no length, or values that are no numbers"
    if not has_length.all():
        found, norms, places = found[has_length], norms[has_length], places[has_length]
    found *= (1 / norms)[:, None]
    result = [b""] * len(column)
    content, size = found.astype("<f2").tobytes(), 2 * CLIP_DIMENSION
    for number, place in enumerate(places.tolist()):
        result[place] = content[number * size : (number + 1) * size]
    return result


def _is_text(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return False
    return True


def _cast(column: Any, type_: Any) -> Any:
    try:
        return column.cast(type_)
    except pa.ArrowException as error:
        raise ColumnError(f"a column of type {column.type} is not one of {type_}") from error


def _is_list(type_: Any) -> bool:
    return bool(
        pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)
    )


def _lengths(column: Any) -> Any:
    """int64 [rows]; 0 where there is no list."""
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return lengths.to_numpy(zero_copy_only=False).astype(np.int64)


def _each(
    values: Iterable[str], read: Callable[[str], Value], none: Value, bad: dict[int, str]
) -> list[Value]:
    """One step of Python a value, for what is written as text."""
    result: list[Value] = []
    for place, text in enumerate(values):
        try:
            result.append(read(text) if text else none)
        except ValueError as error:
            bad[place] = str(error)
            result.append(none)
    return result
