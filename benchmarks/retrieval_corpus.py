"""Corpora for benchmarks of retrieval: made up as tower outputs look, or those of a release."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keek_server.releases.queries import queries_of, user_vectors
from keek_server.releases.release import INDEX_FILE, VIDEO_COLUMNS, Corpus, Release
from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.fresh import VECTORS, Columns
from keek_server.retrieval.index import FaissIndex, IndexReport, Vectors
from keek_server.retrieval.tuning import QUERIES
from keek_server.towers.contract import DIMENSION

_TOPICS: Final = 1000
_VARIANCES: Final = ((2, 0.2), (2, 0.1), (4, 0.035), (8, 0.011), (16, 0.005), (32, 0.003))
"""Of the principal directions, as those of towers that were trained here: how many have which share."""
_WITHIN: Final = 0.3
"""Share of the variance within a topic."""
_LENGTH: Final = 0.9
_LIKED: Final = 5
"""A user is in the middle of so many videos of a topic."""
_QUERIES: Final = 1000
_CHUNK: Final = 250_000


@dataclass(frozen=True, slots=True)
class Built:
    """A corpus with its index, in files."""

    folder: Path
    report: IndexReport
    queries: Vectors
    """float32 [m, DIMENSION]; the index was tuned to others."""

    def corpus(self) -> Corpus:
        """Mapped."""
        return Corpus.open(self.folder)

    def index(self, corpus: Corpus) -> FaissIndex:
        """Mapped."""
        return FaissIndex.open(self.folder / INDEX_FILE, self.report, corpus.vectors)


def make(folder: Path, count: int, options: IndexOptions) -> Built:
    """Vectors of topics, with the variances and lengths that trained towers give; users are near what they
    like."""
    topics = _Topics()
    drawn = folder / "drawn.npy"
    vectors = np.lib.format.open_memmap(drawn, "w+", np.float32, (count, DIMENSION))
    for start in range(0, count, _CHUNK):
        part = min(_CHUNK, count - start)
        vectors[start : start + part] = topics.draw(part, seed=start + 1)
    Corpus.build(_ids(count), _columns(vectors), np.ones(count, np.int64)).save(folder)
    del vectors
    drawn.unlink()
    queries = topics.draw(QUERIES + _QUERIES, seed=0, liked=_LIKED)
    index, report = build_index(Corpus.open(folder).vectors, queries[:QUERIES], options)
    index.save(folder / INDEX_FILE)
    return Built(folder, report, queries[QUERIES:])


def of_release(folder: Path) -> Built:
    """A release's own index; users that it holds ask, videos where it holds too few.

    Raises:
        SetupError: When the folder holds no release.
    """
    release = Release.open(folder)
    queries = queries_of(release, user_vectors(folder), _QUERIES)
    return Built(folder, release.manifest.index, queries.vectors)


class _Topics:
    def __init__(self) -> None:
        rng = np.random.default_rng(9)
        shares = np.concatenate([np.full(count, share) for count, share in _VARIANCES])
        self._deviations = _LENGTH * np.sqrt(shares / shares.sum())
        self._directions, _ = np.linalg.qr(rng.standard_normal((DIMENSION, DIMENSION)))
        between = np.sqrt(1 - _WITHIN) * rng.standard_normal((_TOPICS, DIMENSION))
        self._centres = between * self._deviations
        # The largest topics have some hundred times as many videos as the smallest.
        sizes = 1 / (np.arange(_TOPICS) + _TOPICS / 100)
        self._sizes = sizes / sizes.sum()

    def draw(self, count: int, *, seed: int, liked: int = 1) -> Vectors:
        """Means of `liked` vectors of one topic each: float32 [count, DIMENSION]."""
        rng = np.random.default_rng(seed)
        topics = rng.choice(_TOPICS, count, p=self._sizes)
        within = np.sqrt(_WITHIN / liked) * rng.standard_normal((count, DIMENSION), np.float32)
        vectors = (self._centres[topics] + within * self._deviations) @ self._directions.T
        return vectors.astype(np.float32)


def _columns(vectors: Vectors) -> Columns:
    """What a release holds: owners of 20 videos on average, durations from 0 to 1."""
    count = len(vectors)
    rng = np.random.default_rng(4)
    columns: dict[str, npt.NDArray[Any]] = {
        name: np.zeros((count, *column.shape), column.dtype) for name, column in VIDEO_COLUMNS.items()
    }
    columns[VECTORS] = vectors
    columns["owners"] = rng.integers(1, 2 + count // 20, count, np.uint64)
    columns["durations_s"] = rng.random(count, np.float32)
    return columns


def _ids(count: int) -> Sequence[str]:
    return [f"video-{i:08d}" for i in range(count)]
