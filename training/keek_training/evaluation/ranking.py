"""Rankings of all videos, from scores: what users have met is left out."""

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from keek_server.retrieval.index import best
from keek_training.evaluation.cases import Cases
from keek_training.evaluation.histories import Histories
from keek_training.features import Float32Array, Int64Array

DEPTH: Final = 100
"""Places of a ranking that are kept."""

_CHUNK: Final = 256
_TIE: Final = 1e-7

Ranked = npt.NDArray[np.int32]
"""int32 [cases, DEPTH]: rows of the catalogue, the best first; -1 where there are no more."""

Score = Callable[[Histories], Float32Array]
"""Scores all videos for some users, float32 [users, videos], from what they did not skip."""


def rank(cases: Cases, score: Score) -> Ranked:
    """All videos ranked by score for each case.

    Equal scores, as those that are 0 because a baseline has nothing to say, are in the order of popularity;
    so a user of whom nothing is known gets what is popular. NaN counts as the worst.
    """
    order = np.argsort(-cases.training_counts, kind="stable")
    popularity = np.linspace(_TIE, 0, len(order), dtype=np.float32)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    parts = []
    for start in range(0, len(cases), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(cases)))
        scores = score(cases.liked.take(rows))[:, order]
        largest = np.max(np.abs(scores), axis=1, keepdims=True, where=np.isfinite(scores), initial=0.0)
        scores = scores + popularity * np.where(largest > 0, largest, 1)
        parts.append(order_of(top(scores, cases.seen.take(rows), places), order))
    return np.concatenate(parts)


def rank_by_vectors(cases: Cases, users: Float32Array, videos: Float32Array) -> Ranked:
    """All videos ranked by dot product: exact search.

    Args:
        cases: n.
        users: float32 [n, dimension].
        videos: float32 [videos, dimension].
    """
    places = np.arange(len(videos))
    parts = []
    for start in range(0, len(cases), _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, len(cases)))
        parts.append(top(users[rows] @ videos.T, cases.seen.take(rows), places))
    return np.concatenate(parts)


def top(scores: Float32Array, seen: Histories, places: Int64Array) -> Ranked:
    """The `DEPTH` best columns of each row, as int32, without what was seen.

    Args:
        scores: float32 [n, videos]; changed.
        seen: Of the same n users.
        places: int64 [videos]: the column of each video.
    """
    scores = np.nan_to_num(scores, copy=False, nan=-np.inf, posinf=-np.inf, neginf=-np.inf)
    scores[seen.users, places[seen.videos]] = -np.inf
    k = min(DEPTH, scores.shape[1])
    rows = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    found, columns = best(scores, rows, k)
    columns = np.where(np.isfinite(found), columns, -1)
    return np.pad(columns, ((0, 0), (0, DEPTH - k)), constant_values=-1).astype(np.int32)


def order_of(columns: Ranked, order: Int64Array) -> Ranked:
    """Columns back to rows of the catalogue."""
    rows: Ranked = np.where(columns >= 0, order[np.maximum(columns, 0)], -1).astype(np.int32)
    return rows
