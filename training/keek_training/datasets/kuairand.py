"""KuaiRand-Pure (https://kuairand.com, CC BY-SA 4.0): short videos of Kuaishou, April and May 2022.

Two layouts are read: the published CSV files, and a Parquet layout with a row a user
(`kuairand_sequences`). Both give the same events: an impression that was watched long,
liked or forwarded is a VIEW, any other a SKIP, as is one that the user hated; a like and
a forward are a LIKE and a SHARE of their own at the same time.
"""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.assemble import (
    assemble,
    bare_videos,
    interaction_table,
    video_table,
    with_unknown,
)
from keek_training.datasets.dataset import Dataset, Problem
from keek_training.datasets.kuairand_sequences import SEQUENCES, read_sequences
from keek_training.datasets.parquet import read_parquet
from keek_training.datasets.parse import (
    MAX_DURATION_S,
    MAX_ID_BYTES,
    parse_durations,
    parse_flags,
    parse_ids,
    parse_numbers,
    parse_tags,
    parse_text,
    parse_times,
)
from keek_training.datasets.rows import BoolArray, Rows
from keek_training.datasets.text import read_csv

PARTS = ("train", "all")

_LOG_COLUMNS = ("user_id", "video_id", "time_ms", "is_like", "is_forward", "is_hate", "long_view")
_WATCHED_COLUMN = "play_time_ms"
_VIDEO_COLUMNS = ("video_id", "author_id", "upload_dt", "video_duration", "music_id", "tag")
_SEEN = (InteractionKind.SKIP, InteractionKind.VIEW)
_BEIJING_AHEAD_US = timedelta(hours=8) // timedelta(microseconds=1)


def read(path: Path, part: str = "train") -> Dataset:
    """Reads a folder of either layout; videos without metadata are kept bare.

    Args:
        path: The folder that was unpacked, or its `data` folder.
        part: `train`: what users did in the standard feed (in the Parquet layout, before
            the validation period). `all`: also the randomised exposures, or the
            validation period.

    Raises:
        SetupError: When the folder holds neither layout, or a file lacks a column.
    """
    if part not in PARTS:
        raise SetupError(f"kuairand has the parts {' and '.join(PARTS)}, not {part!r}")
    folder = path / "data" if (path / "data").is_dir() else path
    if (folder / SEQUENCES).exists():
        interactions, problems = _read_parquet_layout(folder, part)
    else:
        interactions, problems = _read_csv_layout(folder, part)
    videos, video_problems = _read_videos(folder)
    return assemble(
        "kuairand", with_unknown(videos, interactions), interactions, [*video_problems, *problems]
    )


def _read_parquet_layout(folder: Path, part: str) -> tuple[pa.Table, list[Problem]]:
    interactions, problems = read_sequences(folder / SEQUENCES)
    tables, validation = [interactions], sorted(folder.glob("val_*.parquet"))
    if part == "all" and not validation:
        raise SetupError(f"{folder} has no val_*.parquet for the part 'all'")
    for file in validation if part == "all" else []:
        more, faults = _log(Rows(read_parquet(file, _LOG_COLUMNS, (_WATCHED_COLUMN,))))
        tables.append(more)
        problems += faults
    return pa.concat_tables(tables, promote_options="default"), problems


def _read_csv_layout(folder: Path, part: str) -> tuple[pa.Table, list[Problem]]:
    files = sorted(folder.glob("log_standard_*.csv"))
    if not files:
        raise SetupError(f"{folder} holds neither log_standard_*.csv nor {SEQUENCES}: no KuaiRand-Pure")
    if part == "all":
        files += sorted(folder.glob("log_random_*.csv"))
    read = [_log(Rows(read_csv(file, _LOG_COLUMNS, (_WATCHED_COLUMN,)))) for file in files]
    tables = pa.concat_tables([table for table, _ in read], promote_options="default")
    return tables, [one for _, faults in read for one in faults]


def _log(rows: Rows) -> tuple[pa.Table, list[Problem]]:
    """One row an impression, to one event for what was seen and one for each button."""
    user_ids, video_ids = parse_ids(rows, "user_id"), parse_ids(rows, "video_id")
    times_us = parse_times(rows, "time_ms")
    liked, forwarded = parse_flags(rows, "is_like"), parse_flags(rows, "is_forward")
    hated, watched = parse_flags(rows, "is_hate"), parse_flags(rows, "long_view")
    viewed = (watched | liked | forwarded) & ~hated
    watched_ms = _watched_ms(rows)
    events = pa.concat_tables(
        [
            interaction_table(
                user_ids.filter(pa.array(which)),
                video_ids.filter(pa.array(which)),
                np.full(int(which.sum()), int(kind), np.int8),
                times_us.filter(pa.array(which)),
                **{name: own.filter(pa.array(which)) for name, own in watched_ms.items() if kind in _SEEN},
            )
            for kind, which in _kinds(rows.good, viewed, liked, forwarded)
        ],
        promote_options="default",
    )
    return events, rows.problems()


def _watched_ms(rows: Rows) -> dict[str, pa.Array]:
    """How long each impression was watched, where the file says it; a time of more than a day is none."""
    if _WATCHED_COLUMN not in rows:
        return {}
    watched_ms = parse_numbers(rows, _WATCHED_COLUMN)
    known = (watched_ms >= 0) & (watched_ms <= MAX_DURATION_S * 1000)
    return {"watched_ms": pa.array(np.where(known, watched_ms, 0).astype(np.int32), mask=~known)}


def _kinds(
    good: BoolArray, viewed: BoolArray, liked: BoolArray, forwarded: BoolArray
) -> list[tuple[InteractionKind, BoolArray]]:
    return [
        (InteractionKind.SKIP, good & ~viewed),
        (InteractionKind.VIEW, good & viewed),
        (InteractionKind.LIKE, good & liked),
        (InteractionKind.SHARE, good & forwarded),
    ]


def _read_videos(folder: Path) -> tuple[pa.Table, list[Problem]]:
    """The videos' metadata from either layout; none when there is no file of it."""
    parquet, csvs = folder / "items.parquet", sorted(folder.glob("video_features_basic*.csv"))
    if not parquet.exists() and not csvs:
        return bare_videos(pa.array([], pa.string())), []
    required, optional = _VIDEO_COLUMNS[:1], _VIDEO_COLUMNS[1:]
    if parquet.exists():
        rows = Rows(read_parquet(parquet, required, optional))
    else:
        rows = Rows(read_csv(csvs[0], required, optional))
    videos = video_table(
        rows,
        video_ids=parse_ids(rows, "video_id"),
        owner_ids=parse_text(rows, "author_id", MAX_ID_BYTES),
        tags=_tags(rows),
        durations_s=parse_durations(rows, "video_duration", unit_s=0.001),
        create_times_us=_midnight_in_beijing(parse_times(rows, "upload_dt", required=False)),
    )
    return videos, rows.problems()


def _tags(rows: Rows) -> list[list[str]]:
    tags = [[f"tag:{tag}" for tag in own] for own in parse_tags(rows, "tag")]
    if "music_id" in rows:
        for own, music in zip(tags, rows.strings("music_id").to_pylist(), strict=True):
            own += [f"music:{music}"] if music not in {"", "0"} else []
    return tags


def _midnight_in_beijing(days_us: pa.Array) -> pa.Array:
    """The days were read as UTC; the data set's days are those of Beijing."""
    return pc.subtract(days_us, _BEIJING_AHEAD_US)
