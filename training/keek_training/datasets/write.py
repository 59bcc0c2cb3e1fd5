"""Data sets to files that the readers `table` and `prototype` read back."""

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets import prototype, table
from keek_training.datasets.dataset import Dataset

_TIME = pa.timestamp("us", "UTC")
_TAG_SEPARATOR = "|"


def write_parquet(dataset: Dataset, folder: Path) -> list[Path]:
    """Writes the layout of `table:DIR` as Parquet; returns the files."""
    files = []
    for stem, columns in _table_columns(dataset).items():
        files.append(folder / f"{stem}.parquet")
        pq.write_table(pa.table(columns), files[-1], compression="zstd")
    return files


def write_csv(dataset: Dataset, folder: Path) -> list[Path]:
    """Writes the layout of `table:DIR` as CSV; returns the files."""
    return [
        _write_rows(folder / f"{stem}.csv", list(columns), columns.values())
        for stem, columns in _table_columns(dataset).items()
    ]


def write_prototype(dataset: Dataset, folder: Path) -> list[Path]:
    """Writes the layout of `prototype:DIR`, which has no titles, times, languages or regions."""
    videos, interactions = _table_columns(dataset).values()
    logged = interactions.values()
    watched = (prototype.WATCHED_COLUMN,) if prototype.WATCHED_COLUMN in interactions else ()
    described = (videos[name] for name in ("video_id", "tags", "duration_s", "owner_id"))
    return [
        _write_rows(folder / prototype.VIDEOS_FILE, prototype.VIDEO_COLUMNS, described),
        _write_rows(folder / prototype.INTERACTIONS_FILE, (*prototype.INTERACTION_COLUMNS, *watched), logged),
    ]


WRITERS: dict[str, Callable[[Dataset, Path], list[Path]]] = {
    "parquet": write_parquet,
    "csv": write_csv,
    "prototype": write_prototype,
}


def _table_columns(dataset: Dataset) -> dict[str, dict[str, pa.Array]]:
    names = pa.array([""] + [kind.name.lower() for kind in InteractionKind])
    interactions, videos = dataset.interactions, dataset.videos
    return {
        "videos": {
            **{name: videos[name] for name in table.VIDEO_COLUMNS[:-1]},
            "create_time": videos["create_time_us"].cast(_TIME),
        },
        "interactions": {
            "user_id": interactions["user_id"],
            "video_id": interactions["video_id"],
            "kind": pc.take(names, interactions["kind"]),
            "event_time": interactions["event_time_us"].cast(_TIME),
            **_watched(interactions),
        },
    }


def _watched(interactions: pa.Table) -> dict[str, pa.Array]:
    """How long videos were watched, where the data know it."""
    if "watched_ms" not in interactions.column_names:
        return {}
    return {"watched_s": pc.divide(interactions["watched_ms"].cast(pa.float64()), 1000)}


def _write_rows(file: Path, names: Sequence[str], columns: Iterable[pa.Array]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as text:
        writer = csv.writer(text)  # RFC 4180: its own line ends make it quote every other
        writer.writerow(names)
        writer.writerows(zip(*(_spelled(column) for column in columns), strict=True))
    return file


def _spelled(column: pa.Array) -> list[Any]:
    """Values as text that is read back as the same values."""
    if pa.types.is_timestamp(column.type):
        column = pc.strftime(column, format="%Y-%m-%dT%H:%M:%SZ")
    if pa.types.is_list(column.type):
        return [_TAG_SEPARATOR.join(tags) for tags in column.to_pylist()]
    if pa.types.is_floating(column.type):
        column = column.cast(pa.string())
    values: list[Any] = column.to_pylist()
    return values
