"""Raw features to tensors: the one encoding that training and serving share.

There are no vocabularies: ids are hashed. Two hashes an id let a tower look up two
embeddings and add them, so that two ids that collide in one table stay apart in the
other (Svenstrup et al., "Hash Embeddings for Efficient Word Representations", 2017).
The tower takes each hash modulo the size of its own table.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import xxhash

from keek_server.towers.contract import CLIP_DIMENSION, DIMENSION

Int32Array = npt.NDArray[np.int32]
Float32Array = npt.NDArray[np.float32]
Float16Array = npt.NDArray[np.float16]
Tensors = dict[str, npt.NDArray[np.generic]]

MAX_TAGS = 16
"""Tags of a video that the tower reads; further ones are left out."""

_MASK = np.uint64(0x7FFF_FFFF)
_TAGS_REMEMBERED = 100_000
_EMPTY_DIGEST = np.uint64(xxhash.xxh3_64_intdigest(b""))


def hash_ids(ids: Sequence[str]) -> Int32Array:
    """Hashes ids: int32 [n, 2], each at least 1; the empty id (unknown) gives zeros."""
    hashed = map(xxhash.xxh3_64_intdigest, map(str.encode, ids))
    digests = np.fromiter(hashed, np.uint64, count=len(ids))
    digests[digests == _EMPTY_DIGEST] = 0
    halves = np.empty((len(ids), 2), np.int32)
    np.bitwise_and(digests, _MASK, out=halves[:, 0], casting="unsafe")
    np.right_shift(digests, np.uint64(33), out=halves[:, 1], casting="unsafe")
    np.maximum(halves, 1, out=halves, where=(digests != 0)[:, None])
    return halves


class _TagHashes(dict[str, int]):
    """The hash of each tag that was asked for: few tags are on many videos, and a look-up takes a
    quarter of the time of a hash."""

    def __missing__(self, tag: str) -> int:
        if len(self) >= _TAGS_REMEMBERED:
            self.clear()
        self[tag] = hashed = int(hash_ids([tag])[0, 0])
        return hashed


_tag_hashes = _TagHashes()


def pad_tags(tags: Sequence[Sequence[str]]) -> Int32Array:
    """Hashes tags: int32 [n, longest], zeros behind each row's own, at least one column."""
    lengths = np.fromiter(map(len, tags), np.int64, count=len(tags))
    width = int(lengths.max(initial=1))
    if width > MAX_TAGS:
        tags = [row[:MAX_TAGS] for row in tags]
        lengths, width = np.minimum(lengths, MAX_TAGS), MAX_TAGS
    out = np.zeros((len(tags), width), np.int32)
    hashes = map(_tag_hashes.__getitem__, chain.from_iterable(tags))
    out[np.arange(width) < lengths[:, None]] = np.fromiter(hashes, np.int32, count=int(lengths.sum()))
    return out


def video_features(
    video_ids: Sequence[str],
    owner_ids: Sequence[str],
    tags: Sequence[Sequence[str]],
    durations_s: Sequence[float] | Float32Array,
    clip_vectors: Float16Array | None = None,
) -> Tensors:
    """Inputs of the video tower for n videos, by tensor name.

    Args:
        video_ids: n ids.
        owner_ids: n ids, empty where unknown.
        tags: n lists of tags.
        durations_s: n durations in seconds, 0 where unknown.
        clip_vectors: float16 [n, CLIP_DIMENSION], zeros where a video has none.
    """
    count = len(video_ids)
    if clip_vectors is None:
        clip_vectors = np.zeros((count, CLIP_DIMENSION), np.float16)
    return {
        "video": hash_ids(video_ids),
        "owner": hash_ids(owner_ids),
        "tags": pad_tags(tags),
        "duration_s": np.asarray(durations_s, np.float32).reshape(count, 1),
        "clip_vector": clip_vectors,
    }


def user_features(
    user_ids: Sequence[str],
    vectors: Sequence[Float32Array],
    kinds: Sequence[Int32Array],
    ages_s: Sequence[Float32Array],
) -> Tensors:
    """Inputs of the user tower for n users, by tensor name, padded to the longest history.

    Args:
        user_ids: n ids.
        vectors: per user float32 [length, DIMENSION], newest last.
        kinds: per user int32 [length], InteractionKind.
        ages_s: per user float32 [length], seconds since each interaction.
    """
    count = len(user_ids)
    length = max((len(row) for row in kinds), default=0) or 1
    tensors: Tensors = {
        "user": hash_ids(user_ids),
        "history_vectors": np.zeros((count, length, DIMENSION), np.float32),
        "history_kinds": np.zeros((count, length), np.int32),
        "history_ages_s": np.zeros((count, length), np.float32),
    }
    for row in range(count):
        if own := len(kinds[row]):
            tensors["history_vectors"][row, -own:] = vectors[row]
            tensors["history_kinds"][row, -own:] = kinds[row]
            tensors["history_ages_s"][row, -own:] = ages_s[row]
    return tensors
