"""Any Parquet or CSV: `videos.{parquet,csv}` and `interactions.{parquet,csv}`, by a column mapping."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.assemble import assemble, interaction_table, reject_unknown, video_table
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.parquet import read_parquet
from keek_training.datasets.parse import (
    MAX_ID_BYTES,
    MAX_REGION_BYTES,
    MAX_TITLE_BYTES,
    parse_durations,
    parse_ids,
    parse_kinds,
    parse_languages,
    parse_tags,
    parse_text,
    parse_times,
    parse_uuids,
    parse_watched,
)
from keek_training.datasets.raw import RawTable
from keek_training.datasets.rows import Rows
from keek_training.datasets.text import read_csv

VIDEO_COLUMNS = ("video_id", "owner_id", "tags", "duration_s", "title", "language", "region", "create_time")
INTERACTION_COLUMNS = ("user_id", "video_id", "kind", "event_time")
EXTRA_COLUMNS = ("event_id", "region", "watched_s")
MAPPING_FILE = "columns.json"

_FILES = {"videos": VIDEO_COLUMNS, "interactions": (*INTERACTION_COLUMNS, *EXTRA_COLUMNS)}
_SHARED = frozenset(VIDEO_COLUMNS) & frozenset(EXTRA_COLUMNS)
"""What either file may have: mapped for both, it need be in one of them alone."""


def read(path: Path, columns: Mapping[str, str] | None = None) -> Dataset:
    """Reads the two files of a folder; an interaction with a video that is not there is a problem.

    Args:
        path: The folder.
        columns: From Keek's names of columns to the files' own, where they differ;
            `videos.video_id` is meant for one file alone. `kind` may be `=like`, or any
            other kind, for a file whose rows are all of it. By default what the folder's
            `columns.json` says, if there is one.

    Raises:
        SetupError: When a file is missing or lacks a column, or the mapping names none of Keek's.
    """
    mapping = _mapping(path) if columns is None else dict(columns)
    _check(mapping)
    video_rows = Rows(_read_file(path, "videos", mapping, VIDEO_COLUMNS[:1]))
    videos = video_table(
        video_rows,
        video_ids=parse_ids(video_rows, "video_id"),
        owner_ids=parse_text(video_rows, "owner_id", MAX_ID_BYTES),
        tags=parse_tags(video_rows, "tags"),
        durations_s=parse_durations(video_rows, "duration_s"),
        titles=parse_text(video_rows, "title", MAX_TITLE_BYTES),
        create_times_us=parse_times(video_rows, "create_time", required=False),
        languages=parse_languages(video_rows, "language"),
        regions=parse_text(video_rows, "region", MAX_REGION_BYTES),
    )
    constant = _constant_kind(mapping)
    required = [name for name in INTERACTION_COLUMNS if name != "kind" or constant is None]
    rows = Rows(_read_file(path, "interactions", mapping, required))
    for name in _shared(mapping):
        if name not in video_rows and name not in rows:
            raise SetupError(f"{path}: neither file has the column {mapping[name]}")
    user_ids, video_ids = parse_ids(rows, "user_id"), parse_ids(rows, "video_id")
    kinds = parse_kinds(rows, "kind") if constant is None else np.full(rows.count, int(constant), np.int8)
    table = interaction_table(
        user_ids, video_ids, kinds, parse_times(rows, "event_time"), **_extras(rows, kinds)
    )
    reject_unknown(rows, video_ids, videos)
    interactions = table.filter(pa.array(rows.good))
    return assemble("table", videos, interactions, [*video_rows.problems(), *rows.problems()])


def _extras(rows: Rows, kinds: npt.NDArray[np.int8]) -> dict[str, pa.Array]:
    """The columns that interactions may have besides, as far as the file has them."""
    extras = {}
    if "event_id" in rows:
        extras["event_id"] = parse_uuids(rows, "event_id")
    if "region" in rows:
        extras["region"] = parse_text(rows, "region", MAX_REGION_BYTES)
    if "watched_s" in rows:
        extras["watched_ms"] = parse_watched(rows, "watched_s", kinds)
    return extras


def _read_file(
    path: Path, stem: str, mapping: Mapping[str, str], required: tuple[str, ...] | list[str]
) -> RawTable:
    """The wanted columns under Keek's names."""
    names = {name: _mapped(mapping, stem, name) for name in _FILES[stem]}
    # What was mapped by hand must be there, also where it could be left out.
    needed = [
        own
        for name, own in names.items()
        if name in required or (own != name and name not in _shared(mapping))
    ]
    needed = [own for own in needed if not own.startswith("=")]
    others = [own for own in names.values() if own not in needed and not own.startswith("=")]
    parquet, csv = path / f"{stem}.parquet", path / f"{stem}.csv"
    if not parquet.exists() and not csv.exists():
        raise SetupError(f"{path} holds neither {parquet.name} nor {csv.name}")
    raw = read_parquet(parquet, needed, others) if parquet.exists() else read_csv(csv, needed, others)
    renamed = {name: raw.table[own] for name, own in names.items() if own in raw.table.column_names}
    return RawTable(raw.file, pa.table(renamed), raw.lines, raw.problems)


def _mapped(mapping: Mapping[str, str], stem: str, name: str) -> str:
    return mapping.get(f"{stem}.{name}", mapping.get(name, name))


def _shared(mapping: Mapping[str, str]) -> frozenset[str]:
    """Columns that are mapped for both files."""
    return frozenset(
        name for name in _SHARED & mapping.keys() if not any(f"{stem}.{name}" in mapping for stem in _FILES)
    )


def _constant_kind(mapping: Mapping[str, str]) -> InteractionKind | None:
    own = _mapped(mapping, "interactions", "kind")
    if not own.startswith("="):
        return None
    try:
        return InteractionKind[own[1:].upper()]
    except KeyError as error:
        kinds = ", ".join(kind.name.lower() for kind in InteractionKind)
        raise SetupError(f"kind={own}: {own[1:]!r} is not one of {kinds}") from error


def _check(mapping: Mapping[str, str]) -> None:
    allowed = {
        spelled for stem, names in _FILES.items() for name in names for spelled in (name, f"{stem}.{name}")
    }
    if unknown := sorted(set(mapping) - allowed):
        names = ", ".join(dict.fromkeys([*VIDEO_COLUMNS, *_FILES["interactions"]]))
        raise SetupError(f"the column mapping names {unknown[0]!r}; it may name {names}")


def _mapping(path: Path) -> dict[str, str]:
    file = path / MAPPING_FILE
    if not file.exists():
        return {}
    try:
        mapping = json.loads(file.read_bytes())
    except ValueError as error:
        raise SetupError(f"{file} is not JSON: {error}") from error
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()):
        raise SetupError(f"{file} must map names of columns to names of columns")
    return mapping
