"""A release as a server holds it: mapped, immutable, captured once by each request."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keek_server.errors import SetupError
from keek_server.releases.manifest import Manifest
from keek_server.retrieval.fresh import VECTORS, Column, Columns
from keek_server.retrieval.gpu import Gpu
from keek_server.retrieval.ids import IdTable, Rows
from keek_server.retrieval.index import FaissIndex, Index, IndexReport, Mask, Vectors
from keek_server.retrieval.milvus import MilvusIndex
from keek_server.retrieval.milvus_store import Milvus
from keek_server.retrieval.postings import Postings
from keek_server.towers.contract import DIMENSION
from keek_server.towers.features import MAX_TAGS

INDEX_FILE = "index.faiss"
CLIP_INDEX_FILE = "clip.faiss"
USER_INDEX_FILE = "users.faiss"
_USER_IDS = "user_id"
_POPULAR, _POPULARITY = "popular.npy", "popularity.npy"

POPULAR_LIMIT = 2000
"""Videos in a release's popular list."""

CLIP = "clip"
"""The column of clip vectors, as `LiveIndex` knows it; a release's main part has it in its index alone."""

VIDEO_COLUMNS: Final[Mapping[str, Column]] = {
    VECTORS: Column(np.float32, (DIMENSION,)),
    # Hash of the owner's id; 0 when unknown.
    "owners": Column(np.uint64),
    # 0 when unknown.
    "durations_s": Column(np.float32),
    "create_times_us": Column(np.int64),
    # Hashes of the tags (`towers.features.pad_tags`), padded with zeros.
    "tags": Column(np.int32, (MAX_TAGS,)),
    # Hashes of the primary subtag and of the whole tag (`videos.locales`); 0 when unknown.
    "languages": Column(np.int32, (2,)),
    # Hash; 0 when unknown.
    "regions": Column(np.int32),
}
"""What a release knows of a video, by row."""

POSTED: Final = ("owners", "tags")
"""Columns of which few rows have the same value."""

_ADDED: Final = frozenset({"languages", "regions"})
"""Columns that releases of before lack: of their videos nothing is known there."""


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Corpus:
    """The videos of a release by row: n rows."""

    ids: IdTable
    columns: Columns
    """VIDEO_COLUMNS, [n, ...] each."""
    popular: Rows
    """int64 [at most POPULAR_LIMIT], most popular first."""
    popularity: npt.NDArray[np.float32]
    """float32, share of the interactions, beside `popular`."""
    postings: Mapping[str, Postings] = field(default_factory=dict)
    """Of the columns POSTED, as far as they are in files."""

    @property
    def vectors(self) -> Vectors:
        """float32 [n, dimension], from the video tower."""
        return self.columns[VECTORS]

    def vectors_of(self, ids: Sequence[str]) -> tuple[Mask, Vectors]:
        """Which of n ids are known, bool [n], and the vectors of those, float32 [known, dimension]."""
        rows = self.ids.rows_of(ids)
        known = rows >= 0
        return known, np.asarray(self.vectors[rows[known]])

    @classmethod
    def build(cls, video_ids: Sequence[str], columns: Columns, counts: npt.NDArray[np.int64]) -> "Corpus":
        """The corpus of n videos, of which video i has counts[i] interactions."""
        popular = np.argsort(-counts, kind="stable")[:POPULAR_LIMIT]
        shares = (counts[popular] / max(1, int(counts.sum()))).astype(np.float32)
        return cls(IdTable.build(video_ids), columns, popular, shares)

    def save(self, folder: Path) -> None:
        """Writes the arrays into `folder`."""
        self.ids.save(folder)
        for name in VIDEO_COLUMNS:
            np.save(folder / f"{name}.npy", self.columns[name])
        for name in POSTED:
            Postings.build(self.columns[name]).save(folder, name)
        np.save(folder / _POPULAR, self.popular)
        np.save(folder / _POPULARITY, self.popularity)

    @classmethod
    def open(cls, folder: Path, files: Collection[str] = ()) -> "Corpus":
        """Maps what `save` wrote.

        Args:
            folder: Where it is.
            files: Names of files that must be there, though a release of before would lack them.
        """
        ids = IdTable.open(folder)
        columns = {
            name: _unknown(column, len(ids))
            if name in _ADDED and not (f"{name}.npy" in files or (folder / f"{name}.npy").exists())
            else _mapped(folder / f"{name}.npy")
            for name, column in VIDEO_COLUMNS.items()
        }
        postings = {name: opened for name in POSTED if (opened := Postings.open(folder, name)) is not None}
        return cls(ids, columns, _mapped(folder / _POPULAR), _mapped(folder / _POPULARITY), postings)


@dataclass(frozen=True, slots=True)
class Audience:
    """The users of a release: those who were active when it was built."""

    ids: IdTable
    index: FaissIndex

    def save(self, folder: Path) -> None:
        """Writes the ids and the index into `folder`."""
        self.ids.save(folder, _USER_IDS)
        self.index.save(folder / USER_INDEX_FILE)

    @classmethod
    def open(cls, folder: Path, report: IndexReport) -> "Audience":
        """Maps what `save` wrote."""
        return cls(IdTable.open(folder, _USER_IDS), FaissIndex.open(folder / USER_INDEX_FILE, report))

    @classmethod
    def none(cls) -> "Audience":
        """Nobody."""
        return cls(IdTable.build([]), FaissIndex.empty(DIMENSION))


@dataclass(frozen=True, slots=True)
class Release:
    """One release, ready to serve."""

    manifest: Manifest
    corpus: Corpus
    index: Index
    """By the vectors of the video tower."""
    clip_index: FaissIndex | None
    """By the clip vectors of those videos that have one."""
    audience: Audience | None

    @property
    def id(self) -> str:
        """The release id."""
        return self.manifest.release_id

    def reads(self, clip_model: str) -> bool:
        """Whether vectors of a CLIP mean to this release what they should; see `clip_is_read`."""
        return clip_is_read(clip_model, self.manifest.clip.clip_model if self.manifest.clip else "")

    @classmethod
    def open(cls, folder: Path, *, milvus: Milvus | None = None, gpu: Gpu | None = None) -> "Release":
        """Maps the release in `folder`; milliseconds, whatever its size, unless Milvus has to load it.

        Args:
            folder: Of the release.
            milvus: Needed by a release whose videos are searched there.
            gpu: What may hold a copy of an index that is a file; it has none yet.

        Raises:
            SetupError: When the folder holds no complete release, or Milvus lacks its part.
            UnavailableError: When Milvus is needed, and does not answer.
        """
        manifest = Manifest.load(folder)
        try:
            return cls._open(folder, manifest, milvus, gpu)
        except FileNotFoundError as error:
            raise SetupError(
                f"release {manifest.release_id} lacks {Path(error.filename or '').name}: publish again"
            ) from error

    @classmethod
    def _open(cls, folder: Path, manifest: Manifest, milvus: Milvus | None, gpu: Gpu | None) -> "Release":
        clip, users = manifest.clip_index, manifest.user_index
        corpus = Corpus.open(folder, manifest.files_sha256)
        return cls(
            manifest,
            corpus,
            _open_index(folder, manifest, corpus.vectors, milvus, gpu),
            FaissIndex.open(folder / CLIP_INDEX_FILE, clip) if clip else None,
            Audience.open(folder, users) if users else None,
        )


def _open_index(
    folder: Path, manifest: Manifest, vectors: Vectors, milvus: Milvus | None, gpu: Gpu | None
) -> Index:
    if manifest.index.kind != "milvus":
        index = FaissIndex.open(folder / INDEX_FILE, manifest.index, vectors)
        return index if gpu is None else gpu.index(index)
    if milvus is None:
        raise SetupError(f"release {manifest.release_id} is searched in Milvus: set KEEK_MILVUS_URL")
    return MilvusIndex.open(milvus, manifest.release_id, manifest.index, vectors)


def clip_is_read(clip_model: str, own: str) -> bool:
    """Whether a release with the CLIP `own` (empty: none) reads vectors of `clip_model` (empty: not said)."""
    return not clip_model or not own or clip_model == own


def _unknown(column: Column, count: int) -> npt.NDArray[Any]:
    """Zeros for `count` rows, in the memory of one."""
    return np.broadcast_to(np.zeros(column.shape, column.dtype), (count, *column.shape))


def _mapped(path: Path) -> npt.NDArray[Any]:
    # A plain view: reading one element of a memmap costs ten times more.
    return np.asarray(np.load(path, mmap_mode="r"))
