"""A data set as arrays: the catalogue's tower inputs, and every user's interactions in order.

Nothing here encodes a feature: that is `keek_server.towers.features`, as in serving.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from keek_server.interactions.kinds import InteractionKind
from keek_server.towers.features import Int32Array, Tensors, hash_ids, video_features
from keek_training.datasets.dataset import Dataset

log = logging.getLogger(__name__)

Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

IS_NEW: Final = "is_new"
"""A column that a data set's interactions may have, bool: what the base of a fine-tuning has not seen."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All videos; a video's row is its index everywhere in training."""

    video_ids: pa.StringArray
    features: Tensors
    """Inputs of the video tower, [videos, ...] each."""

    def __len__(self) -> int:
        return len(self.video_ids)


@dataclass(frozen=True, slots=True)
class Sequences:
    """All interactions, one user after the other, each user's oldest first: n rows."""

    user_ids: list[str]
    users: Int32Array
    """int32 [users, 2]: hashes of the users' ids."""
    offsets: Int64Array
    """int64 [users + 1]: user u has the rows offsets[u] to offsets[u + 1]."""
    videos: Int32Array
    """int32 [n]: row in the catalogue."""
    kinds: Int32Array
    """int32 [n]: InteractionKind."""
    times_us: Int64Array
    """int64 [n]."""
    weights: Float32Array
    """float32 [n]: what the row weighs as a target; 0 when it is none."""
    is_new: BoolArray | None = None
    """bool [n]: what a fine-tuning is about; None where all is."""

    def __len__(self) -> int:
        return len(self.videos)


def catalogue_of(dataset: Dataset) -> Catalogue:
    """The catalogue of a data set."""
    videos = dataset.videos.combine_chunks()
    features = video_features(
        videos["video_id"].to_pylist(),
        videos["owner_id"].to_pylist(),
        videos["tags"].to_pylist(),
        videos["duration_s"].to_numpy(),
        dataset.clip_vectors,
    )
    return Catalogue(videos["video_id"].combine_chunks(), features)


def sequences_of(
    dataset: Dataset, catalogue: Catalogue, kind_weights: Mapping[InteractionKind, float]
) -> Sequences:
    """Every user's raw interactions, as their history would hold them.

    A view and a like of one video stay two rows: serving keeps them both. A row is a target
    when it is the first of its user and video (what was seen is never recommended again) and
    its kind has a weight; it weighs as the strongest of the user's interactions with the video.
    """
    sequences = user_sequences(dataset.interactions, catalogue.video_ids)
    users = np.repeat(np.arange(len(sequences.user_ids)), np.diff(sequences.offsets))
    pairs = users * len(catalogue) + sequences.videos
    return replace(sequences, weights=_target_weights(pairs, sequences.kinds, kind_weights))


def user_sequences(interactions: pa.Table, catalogue_ids: pa.StringArray) -> Sequences:
    """Every user's interactions with videos of the catalogue, none of them a target.

    Args:
        interactions: INTERACTION_SCHEMA, maybe with IS_NEW.
        catalogue_ids: The catalogue's videos, by row.
    """
    rows = interactions
    videos = catalogue_rows(rows["video_id"], catalogue_ids)
    known = videos >= 0
    if not known.all():
        log.info("%d interactions name videos that are not in the catalogue; left out", (~known).sum())
        rows, videos = rows.filter(pa.array(known)), videos[known]
    encoded = rows["user_id"].combine_chunks().dictionary_encode()
    users, times_us = encoded.indices.to_numpy().astype(np.int64), rows["event_time_us"].to_numpy()
    order = np.lexsort((times_us, users))
    users, videos = users[order], videos[order]
    user_ids = encoded.dictionary.to_pylist()
    return Sequences(
        user_ids=user_ids,
        users=hash_ids(user_ids),
        offsets=np.searchsorted(users, np.arange(len(user_ids) + 1)),
        videos=videos,
        kinds=rows["kind"].to_numpy()[order].astype(np.int32),
        times_us=times_us[order],
        weights=np.zeros(len(videos), np.float32),
        is_new=rows[IS_NEW].to_numpy()[order] if IS_NEW in rows.column_names else None,
    )


def catalogue_rows(video_ids: pa.ChunkedArray, catalogue_ids: pa.StringArray) -> Int32Array:
    """Rows in the catalogue, -1 where it lacks the video."""
    rows: Any = pc.fill_null(pc.index_in(video_ids, value_set=catalogue_ids), -1)
    found: Int32Array = rows.to_numpy()
    return found


def _target_weights(
    pairs: Int64Array, kinds: Int32Array, kind_weights: Mapping[InteractionKind, float]
) -> Float32Array:
    """Weights of rows in order of time; `pairs` numbers user and video together."""
    by_kind = np.zeros(max(InteractionKind) + 1, np.float32)
    by_kind[[int(kind) for kind in kind_weights]] = list(kind_weights.values())
    own = by_kind[kinds]
    _, first, group = np.unique(pairs, return_index=True, return_inverse=True)
    strongest = np.zeros(len(first), np.float32)
    np.maximum.at(strongest, group, own)
    weights = np.zeros(len(pairs), np.float32)
    weights[first] = np.where(own[first] > 0, strongest, 0)
    return weights
