"""What users turned to, as a file: the targets of an evaluation, and what they did before."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.assemble import interaction_table
from keek_training.datasets.dataset import INTERACTION_SCHEMA, Problem
from keek_training.datasets.parquet import read_parquet
from keek_training.datasets.parse import parse_ids, parse_kinds, parse_times
from keek_training.datasets.raw import RawTable
from keek_training.datasets.rows import Rows
from keek_training.datasets.text import read_csv
from keek_training.features import Int64Array

_REQUIRED: Final = ("user_id", "video_id")
_TIME: Final = "timestamp"


@dataclass(frozen=True, slots=True)
class Targets:
    """n pairs of a user and a video that this user turned to."""

    user_ids: pa.Array
    """string [n]."""
    video_ids: pa.Array
    """string [n]."""
    times_us: Int64Array | None = None
    """int64 [n]; None where it is not known when."""
    problems: list[Problem] = field(default_factory=list)
    """Rows that were left out."""

    def __len__(self) -> int:
        return len(self.user_ids)


def read_targets(path: Path) -> Targets:
    """Reads a Parquet or CSV file with `user_id`, `video_id` and optionally `timestamp`.

    Raises:
        SetupError: When the file cannot be read, lacks a column, has one of a wrong type, or no good row.
    """
    rows = Rows(_read(path, (_TIME,)))
    user_ids, video_ids = parse_ids(rows, "user_id"), parse_ids(rows, "video_id")
    times = parse_times(rows, _TIME) if _TIME in rows else None
    if not rows.good.any():
        raise SetupError(f"{path} holds no target{_first(rows.problems())}")
    good = pa.array(rows.good)
    times_us = None if times is None else times.filter(good).to_numpy(zero_copy_only=False).astype(np.int64)
    return Targets(user_ids.filter(good), video_ids.filter(good), times_us, rows.problems())


def read_history(path: Path, after_us: int) -> tuple[pa.Table, list[Problem]]:
    """Reads a Parquet or CSV file with `user_id`, `video_id` and optionally `kind` and `timestamp`.

    Args:
        path: The file; rows without a kind are views.
        after_us: When everything else that is known had happened: rows without times follow it, a
            microsecond each.

    Returns:
        Interactions, in the file's order, and the rows that were left out.

    Raises:
        SetupError: See `read_targets`.
    """
    rows = Rows(_read(path, ("kind", _TIME)))
    user_ids, video_ids = parse_ids(rows, "user_id"), parse_ids(rows, "video_id")
    kinds = np.full(rows.count, int(InteractionKind.VIEW), np.int8)
    if "kind" in rows:
        kinds = parse_kinds(rows, "kind")
    times: pa.Array = pa.array(after_us + 1 + np.arange(rows.count))
    if _TIME in rows:
        times = parse_times(rows, _TIME)
    table = interaction_table(user_ids, video_ids, kinds, times).filter(pa.array(rows.good))
    return table.select(INTERACTION_SCHEMA.names).cast(INTERACTION_SCHEMA), rows.problems()


def _read(path: Path, optional: Sequence[str]) -> RawTable:
    if path.suffix not in {".parquet", ".csv"}:
        raise SetupError(f"{path} is neither .parquet nor .csv")
    return (read_parquet if path.suffix == ".parquet" else read_csv)(path, _REQUIRED, optional)


def _first(problems: Sequence[Problem]) -> str:
    return f": row {problems[0].line}: {problems[0].reason}" if problems else ""
