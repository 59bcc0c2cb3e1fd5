"""A release as a server holds it: mapped, immutable, captured once by each request."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from keek_server.releases.manifest import Manifest
from keek_server.retrieval.ids import IdTable, Rows, hash_all
from keek_server.retrieval.index import FaissIndex, Vectors

INDEX_FILE = "index.faiss"
_VECTORS, _OWNERS, _POPULAR, _POPULARITY = "vectors.npy", "owners.npy", "popular.npy", "popularity.npy"

POPULAR_LIMIT = 2000
"""Videos in a release's popular list."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The videos of a release by row: n rows."""

    ids: IdTable
    vectors: Vectors
    """float32 [n, dimension], from the video tower."""
    owners: npt.NDArray[np.uint64]
    """uint64 [n], hash of each owner's id; 0 when unknown."""
    popular: Rows
    """int64 [at most POPULAR_LIMIT], most popular first."""
    popularity: npt.NDArray[np.float32]
    """float32, share of the interactions, beside `popular`."""

    @classmethod
    def build(
        cls,
        video_ids: Sequence[str],
        owner_ids: Sequence[str],
        vectors: Vectors,
        counts: npt.NDArray[np.int64],
    ) -> "Corpus":
        """The corpus of n videos, of which video i has counts[i] interactions."""
        popular = np.argsort(-counts, kind="stable")[:POPULAR_LIMIT]
        shares = (counts[popular] / max(1, int(counts.sum()))).astype(np.float32)
        return cls(IdTable.build(video_ids), vectors, hash_all(owner_ids), popular, shares)

    def save(self, folder: Path) -> None:
        """Writes the arrays into `folder`."""
        self.ids.save(folder)
        np.save(folder / _VECTORS, self.vectors)
        np.save(folder / _OWNERS, self.owners)
        np.save(folder / _POPULAR, self.popular)
        np.save(folder / _POPULARITY, self.popularity)

    @classmethod
    def open(cls, folder: Path) -> "Corpus":
        """Maps what `save` wrote."""
        names = (_VECTORS, _OWNERS, _POPULAR, _POPULARITY)
        return cls(
            IdTable.open(folder), *(np.asarray(np.load(folder / name, mmap_mode="r")) for name in names)
        )


@dataclass(frozen=True, slots=True)
class Release:
    """One release, ready to serve."""

    manifest: Manifest
    corpus: Corpus
    index: FaissIndex

    @property
    def id(self) -> str:
        """The release id."""
        return self.manifest.release_id

    @classmethod
    def open(cls, folder: Path) -> "Release":
        """Maps the release in `folder`; milliseconds, whatever its size.

        Raises:
            SetupError: When the folder holds no complete release.
        """
        manifest = Manifest.load(folder)
        index = FaissIndex.open(folder / INDEX_FILE, manifest.index)
        return cls(manifest, Corpus.open(folder), index)
