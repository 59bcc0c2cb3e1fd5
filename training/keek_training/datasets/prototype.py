"""The prototype's own files: `interaction_log.csv` and `videos.csv`."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from keek_training.datasets.assemble import assemble, interaction_table, reject_unknown, video_table
from keek_training.datasets.dataset import Dataset, Problem
from keek_training.datasets.parse import (
    MAX_ID_BYTES,
    parse_durations,
    parse_ids,
    parse_kinds,
    parse_tags,
    parse_text,
    parse_times,
    parse_watched,
)
from keek_training.datasets.rows import Rows
from keek_training.datasets.text import read_csv

INTERACTIONS_FILE = "interaction_log.csv"
VIDEOS_FILE = "videos.csv"
INTERACTION_COLUMNS = ("user_id", "video_id", "action", "timestamp")
WATCHED_COLUMN = "watched_s"
"""That the prototype's own files have not."""
VIDEO_COLUMNS = ("video_id", "tags", "duration", "owner")


def read(path: Path) -> Dataset:
    """Reads the two files of a folder; an interaction with a video that is not there is a problem.

    Raises:
        SetupError: When a file is missing, or lacks a column.
    """
    return read_files(path / INTERACTIONS_FILE, path / VIDEOS_FILE)


def read_files(interactions: Path, videos: Path) -> Dataset:
    """The same, of files with names of their own."""
    described, problems = _read_videos(videos)
    return read_log(interactions, described, problems)


def read_log(path: Path, videos: pa.Table, problems: Sequence[Problem] = ()) -> Dataset:
    """Reads interactions with videos (VIDEO_SCHEMA) that are known; any other video is a problem.

    Raises:
        SetupError: When the file is missing, or lacks a column.
    """
    rows = Rows(read_csv(path, INTERACTION_COLUMNS, (WATCHED_COLUMN,)))
    user_ids, video_ids = parse_ids(rows, "user_id"), parse_ids(rows, "video_id")
    kinds, times_us = parse_kinds(rows, "action"), parse_times(rows, "timestamp")
    watched = WATCHED_COLUMN in rows
    extras = {"watched_ms": parse_watched(rows, WATCHED_COLUMN, kinds)} if watched else {}
    table = interaction_table(user_ids, video_ids, kinds, times_us, **extras)
    reject_unknown(rows, video_ids, videos)
    interactions = table.filter(pa.array(rows.good))
    return assemble("prototype", videos, interactions, [*problems, *rows.problems()])


def _read_videos(path: Path) -> tuple[pa.Table, list[Problem]]:
    video_rows = Rows(read_csv(path, VIDEO_COLUMNS))
    videos = video_table(
        video_rows,
        video_ids=parse_ids(video_rows, "video_id"),
        owner_ids=parse_text(video_rows, "owner", MAX_ID_BYTES),
        tags=parse_tags(video_rows, "tags"),
        durations_s=parse_durations(video_rows, "duration"),
    )
    return videos, video_rows.problems()
