"""Towers that begin as a matrix factorisation of who met what, and as what videos look like.

Where data are few, the factors of iALS say more than what gradients find from nothing. A video's vector is
its factors and, in dimensions of their own, what its clip vector says: that alone speaks for a video that
training does not know. A ridge tower begins as the step that folds a user in.
"""

import logging
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse.linalg import lsqr

from keek_server.towers.contract import DIMENSION
from keek_training.backend import ops
from keek_training.config import Factors, TrainConfig
from keek_training.features import Catalogue, Float32Array, Int64Array, Sequences
from keek_training.ials import fitted_ials
from keek_training.model import TwoTowers
from keek_training.ridge import RidgeTower

log = logging.getLogger(__name__)

_PRECISION: Final = 1e-7
_WIDENED: Final = 0.3


def begin(
    model: TwoTowers, config: TrainConfig, catalogue: Catalogue, sequences: Sequences, stops: Int64Array
) -> None:
    """Sets the towers' weights; the towers must know their ids, and clip vectors' mean and scale.

    Args:
        model: Built.
        config: With `factors`.
        catalogue: All videos.
        sequences: All users.
        stops: int64 [users]: rows from there on are held out.

    Raises:
        SetupError: When the towers are too narrow, or `implicit` is not installed.
    """
    options, videos = config.factors, model.video_tower
    assert options is not None
    met = _met(sequences, stops, len(catalogue))
    factors = factorised(options, met, config.seed)
    known = np.asarray(met.sum(axis=0)).ravel() > 0
    clips = ops.convert_to_numpy(videos.standardise(catalogue.features["clip_vector"].astype(np.float32)))
    directions = main_directions(clips, DIMENSION - options.dimensions)

    directions *= np.sqrt(options.content_weight)

    projection = np.zeros((clips.shape[1], DIMENSION), np.float32)
    projection[:, options.dimensions :] = directions * options.unknown_content
    videos.begin_content(projection)
    vectors = np.concatenate([factors, clips @ directions], axis=1)[known]
    hashes = catalogue.features["video"][known]
    ids = vectors - (clips @ projection)[known]
    for table, rows in zip(videos.ids.tables, spread(hashes, ids, videos.ids.buckets), strict=True):
        table.assign(rows)
    if isinstance(model.user_tower, RidgeTower):
        model.user_tower.begin(options.sharpness)
    log.info("the towers begin as %d factors of %d videos", options.dimensions, len(vectors))


def _met(sequences: Sequences, stops: Int64Array, videos: int) -> sparse.csr_matrix:
    """float32 [users, videos]: 1 where a video is one of the user's targets."""
    users = np.repeat(np.arange(len(sequences.user_ids)), np.diff(sequences.offsets))
    rows = np.flatnonzero((sequences.weights > 0) & (np.arange(len(sequences)) < stops[users]))
    ones = np.ones(len(rows), np.float32)
    shape = len(sequences.user_ids), videos
    return sparse.csr_matrix((ones, (users[rows], sequences.videos[rows])), shape=shape)


def factorised(options: Factors, met: sparse.csr_matrix, seed: int) -> Float32Array:
    """iALS' factors of the videos, so turned and scaled that a user's are held by the identity.

    Where V are factors and G = V'V / alpha + regularization / alpha, a user's scores depend on V G^-1 V'
    alone. The result H has the H H' that is nearest to the mean of these over trainings that began
    differently: they end differently, and their mean is as good as the best of them.

    Args:
        options: Of the factorisation.
        met: float32 [users, videos].
        seed: Of the first training.

    Returns:
        float32 [videos, dimensions]; 0 for a video that nobody met.

    Raises:
        SetupError: When `implicit` is not installed.
    """
    parts = []
    for nth in range(options.restarts):
        factors = _ials(options, met, seed + nth)
        gram = factors.T @ factors + options.regularization * np.eye(DIMENSION)
        parts.append(factors @ np.linalg.cholesky(np.linalg.inv(gram / options.alpha)))
    every = np.concatenate(parts, axis=1) / np.sqrt(options.restarts)
    _, turns = np.linalg.eigh(every.T @ every)
    return np.asarray(every @ turns[:, ::-1][:, : options.dimensions], np.float32)


def _ials(options: Factors, met: sparse.csr_matrix, seed: int) -> npt.NDArray[np.float64]:
    model = fitted_ials(
        met,
        iterations=options.iterations,
        alpha=options.alpha,
        regularization=options.regularization,
        seed=seed,
        who="factors need",
    )
    factors = np.array(model.item_factors, np.float64)
    factors[np.asarray(met.sum(axis=0)).ravel() == 0] = 0
    return factors


def spread(hashes: npt.NDArray[Any], vectors: Float32Array, buckets: int) -> list[Float32Array]:
    """Two tables, [buckets, d], whose rows by an id's two hashes add up to its vector, as nearly as can be.

    Args:
        hashes: int32 [n, 2].
        vectors: float32 [n, d].
        buckets: Rows of a table.
    """
    count = len(hashes)
    places = hashes.astype(np.int64) % buckets + np.array([0, buckets])
    parts = (np.ones(2 * count), (np.repeat(np.arange(count), 2), places.ravel()))
    sums = sparse.csr_matrix(parts, shape=(count, 2 * buckets))
    rows = [lsqr(sums, column, atol=_PRECISION, btol=_PRECISION)[0] for column in vectors.T]
    return np.split(np.stack(rows, axis=1).astype(np.float32), 2)


def main_directions(vectors: Float32Array, count: int) -> Float32Array:
    """The directions in which vectors differ most, the lesser ones widened a little.

    Args:
        vectors: float32 [n, d], their mean about 0; zeros where there is none.
        count: Directions.

    Returns:
        float32 [d, count]: projected on them the mean square length of a vector is 1; all 0 without any.
    """
    present = vectors[vectors.any(axis=1)].astype(np.float64)
    if not count or not len(present):
        return np.zeros((vectors.shape[1], count), np.float32)
    sizes, found = np.linalg.eigh(present.T @ present / len(present))
    sizes, found = np.sqrt(np.maximum(sizes[::-1][:count], 0)), found[:, ::-1][:, :count]
    directions = found * np.maximum(sizes, _PRECISION * sizes[0]) ** -_WIDENED
    length = np.sqrt(np.mean(np.sum((present @ directions) ** 2, axis=1)))
    return np.asarray(directions / length, np.float32)
