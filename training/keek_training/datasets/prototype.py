"""The prototype's own files: `interaction_log.csv` and `videos.csv`."""

from pathlib import Path

import pyarrow as pa

from keek_training.datasets.assemble import assemble, interaction_table, reject_unknown, video_table
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.parse import (
    MAX_ID_BYTES,
    parse_durations,
    parse_ids,
    parse_kinds,
    parse_tags,
    parse_text,
    parse_times,
)
from keek_training.datasets.rows import Rows
from keek_training.datasets.text import read_csv

INTERACTIONS_FILE = "interaction_log.csv"
VIDEOS_FILE = "videos.csv"
INTERACTION_COLUMNS = ("user_id", "video_id", "action", "timestamp")
VIDEO_COLUMNS = ("video_id", "tags", "duration", "owner")


def read(path: Path) -> Dataset:
    """Reads the two files of a folder; an interaction with a video that is not there is a problem.

    Raises:
        SetupError: When a file is missing, or lacks a column.
    """
    video_rows = Rows(read_csv(path / VIDEOS_FILE, VIDEO_COLUMNS))
    videos = video_table(
        video_rows,
        video_ids=parse_ids(video_rows, "video_id"),
        owner_ids=parse_text(video_rows, "owner", MAX_ID_BYTES),
        tags=parse_tags(video_rows, "tags"),
        durations_s=parse_durations(video_rows, "duration"),
    )
    rows = Rows(read_csv(path / INTERACTIONS_FILE, INTERACTION_COLUMNS))
    user_ids, video_ids = parse_ids(rows, "user_id"), parse_ids(rows, "video_id")
    table = interaction_table(
        user_ids, video_ids, parse_kinds(rows, "action"), parse_times(rows, "timestamp")
    )
    reject_unknown(rows, video_ids, videos)
    interactions = table.filter(pa.array(rows.good))
    return assemble("prototype", videos, interactions, [*video_rows.problems(), *rows.problems()])
