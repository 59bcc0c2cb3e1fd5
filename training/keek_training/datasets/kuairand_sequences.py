"""KuaiRand-Pure as a row a user: `train_user_sequences.parquet`.

It names what each user was shown (`watch_seq`, at most the last 50 of `history_len`),
liked (`like_seq`) and watched long (`long_watch_seq`; both at most the last 50, also from
before those shown), oldest first, and the exact time of the last impression alone. The
other times are made up, in order and evenly spaced: as if the user's `history_len`
impressions were spread from the start of the log to `last_time_ms`.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.assemble import interaction_table
from keek_training.datasets.dataset import Problem
from keek_training.datasets.parquet import read_parquet
from keek_training.datasets.parse import parse_ids, parse_numbers, parse_times
from keek_training.datasets.raw import Int64Array
from keek_training.datasets.rows import BoolArray, Rows

SEQUENCES = "train_user_sequences.parquet"

_COLUMNS = ("user_id", "history_len", "last_time_ms", "watch_seq", "like_seq", "long_watch_seq")
_LOG_START = datetime(2022, 4, 8, tzinfo=timezone(timedelta(hours=8)))
_LOG_START_US = int(_LOG_START.timestamp()) * 1_000_000
_SHORTEST_GAP_US = 1_000_000
_NONE = -1


@dataclass(frozen=True, slots=True)
class _Users:
    """n users; sequences int64 [n, longest], on the right, -1 before their first video."""

    user_ids: pa.Array
    last_times_us: Int64Array
    gaps_us: Int64Array
    """Between two impressions."""
    shown: Int64Array
    liked: Int64Array
    watched: Int64Array


def read_sequences(path: Path) -> tuple[pa.Table, list[Problem]]:
    """The interactions of all users, and the rows that could not be read.

    Raises:
        SetupError: When the file is not of this layout.
    """
    rows = Rows(read_parquet(path, _COLUMNS))
    users = _read_users(rows)
    nothing = np.zeros(len(users.shown), np.int64)
    liked, likes = _align(users.shown, users.liked, nothing)
    watched, watches = _align(users.shown, users.watched, nothing)
    shown = users.shown != _NONE
    viewed = shown & (liked | watched)
    times_us = _times(users, shown.shape[1])
    tables = [
        _events(users, users.shown, shown & ~viewed, times_us, InteractionKind.SKIP),
        _events(users, users.shown, viewed, times_us, InteractionKind.VIEW),
        _events(users, users.shown, liked, times_us, InteractionKind.LIKE),
        *_older_events(users, likes, watches),
    ]
    return pa.concat_tables(tables), rows.problems()


def _older_events(users: _Users, likes: Int64Array, watches: Int64Array) -> list[pa.Table]:
    """What is told from before the impressions that are known.

    Args:
        users: Of n users.
        likes: int64 [n]: how many entries of `liked` are among those impressions.
        watches: int64 [n]: how many entries of `watched` are.
    """
    older = _older(users.watched, watches)
    liked, likes = _align(np.where(older, users.watched, _NONE), users.liked, likes)
    lone = _older(users.liked, likes)
    times_us, lone_times_us = _older_times(users, older), _older_times(users, lone)
    return [
        _events(users, users.watched, older, times_us, InteractionKind.VIEW),
        _events(users, users.watched, liked, times_us, InteractionKind.LIKE),
        _events(users, users.liked, lone, lone_times_us, InteractionKind.VIEW),
        _events(users, users.liked, lone, lone_times_us, InteractionKind.LIKE),
    ]


def _read_users(rows: Rows) -> _Users:
    user_ids = parse_ids(rows, "user_id")
    last_times_us = parse_times(rows, "last_time_ms").to_numpy(zero_copy_only=False)
    lengths = parse_numbers(rows, "history_len")
    rows.reject_values(~(lengths >= 1), "history_len", "is no number of impressions")
    sequences = [_padded(rows, name) for name in ("watch_seq", "like_seq", "long_watch_seq")]
    good = rows.good
    span_us = np.maximum(last_times_us[good] - _LOG_START_US, 0)
    return _Users(
        user_ids.filter(pa.array(good)),
        last_times_us[good].astype(np.int64),
        np.maximum(span_us / lengths[good], _SHORTEST_GAP_US).astype(np.int64),
        *(sequence[good] for sequence in sequences),
    )


def _padded(rows: Rows, name: str) -> Int64Array:
    """A column of lists of ids as int64 [rows, longest], filled from the right."""
    column = rows.column(name)
    if not pa.types.is_list(column.type) or not pa.types.is_integer(column.type.value_type):
        raise SetupError(f"{rows.file}: the column {name} is {column.type}, not lists of whole numbers")
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    values = pc.fill_null(pc.list_flatten(column), _NONE).to_numpy()
    width = int(lengths.max(initial=1))
    padded = np.full((rows.count, width), _NONE, np.int64)
    padded[np.arange(width) >= width - lengths[:, None]] = values
    return padded


def _align(shown: Int64Array, marked: Int64Array, taken: Int64Array) -> tuple[BoolArray, Int64Array]:
    """Finds a sequence in what was shown, both read from their newest ends.

    Args:
        shown: int64 [n, longest shown], -1 where there is nothing.
        marked: int64 [n, longest marked], filled from the right.
        taken: int64 [n]: how many of the newest entries of `marked` are found already.

    Returns:
        bool, as `shown`: which of it the sequence names; and `taken` with those found now.
    """
    found = np.zeros(shown.shape, np.bool_)
    users = np.arange(len(shown))
    left = (marked != _NONE).sum(axis=1)
    # A column of its own before the first: what a user without entries left looks at.
    ends = np.concatenate([np.full((len(marked), 1), _NONE), marked], axis=1)
    for column in reversed(range(shown.shape[1])):
        match = (taken < left) & (ends[users, marked.shape[1] - taken] == shown[:, column])
        found[:, column] = match
        taken = taken + match
    return found, taken


def _older(marked: Int64Array, taken: Int64Array) -> BoolArray:
    """Which entries of a sequence are older than its `taken` newest."""
    width = marked.shape[1]
    older: BoolArray = (marked != _NONE) & (np.arange(width) < width - taken[:, None])
    return older


def _times(users: _Users, width: int) -> Int64Array:
    """int64 [n, width]: times of impressions, the newest at `last_times_us`."""
    back = np.arange(width - 1, -1, -1)
    times_us: Int64Array = users.last_times_us[:, None] - back * users.gaps_us[:, None]
    return times_us


def _older_times(users: _Users, older: BoolArray) -> Int64Array:
    """Times for what came before the impressions: evenly between the log's start and the first."""
    known = (users.shown != _NONE).sum(axis=1)
    first_us = users.last_times_us - (known - 1) * users.gaps_us
    start_us = np.minimum(_LOG_START_US, first_us - _SHORTEST_GAP_US)
    place = older.cumsum(axis=1)
    step_us = (first_us - start_us) / (older.sum(axis=1) + 1)
    times_us: Int64Array = start_us[:, None] + (place * step_us[:, None]).astype(np.int64)
    return times_us


def _events(
    users: _Users, videos: Int64Array, which: BoolArray, times_us: Int64Array, kind: InteractionKind
) -> pa.Table:
    """One event for every true element of `which`, user by user."""
    rows, _ = np.nonzero(which)
    return interaction_table(
        users.user_ids.take(pa.array(rows)),
        pa.array(videos[which]).cast(pa.string()),
        np.full(len(rows), int(kind), np.int8),
        pa.array(times_us[which]),
    )
