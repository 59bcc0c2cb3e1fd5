"""Which videos users met, as arrays and as a sparse matrix: what baselines learn from and start from."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from keek_server.interactions.kinds import InteractionKind
from keek_server.towers.features import Int32Array
from keek_training.features import Int64Array, Sequences

Weights = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Histories:
    """u users and the videos that each met, oldest first: m rows. One met again counts as met last."""

    offsets: Int64Array
    """int64 [u + 1]: user i has the rows offsets[i] to offsets[i + 1]."""
    videos: Int32Array
    """int32 [m]: row in the catalogue."""
    kinds: Int32Array
    """int32 [m]: the InteractionKind of the last time; of several at one moment, the last in the log."""
    times_us: Int64Array
    """int64 [m]: of the last time."""
    video_count: int

    @classmethod
    def of(cls, sequences: Sequences, video_count: int, *, with_skips: bool = False) -> "Histories":
        """Those of all users of `sequences`; what was skipped alone is left out unless wanted."""
        users = np.repeat(np.arange(len(sequences.user_ids)), np.diff(sequences.offsets))
        rows = np.arange(len(sequences))
        if not with_skips:
            rows = np.flatnonzero(sequences.kinds != InteractionKind.SKIP)
        pairs = users[rows] * video_count + sequences.videos[rows]
        # The first in reverse is the last.
        _, last = np.unique(pairs[::-1], return_index=True)
        rows = rows[np.sort(len(rows) - 1 - last)]
        counts = np.bincount(users[rows], minlength=len(sequences.user_ids))
        return cls(
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            sequences.videos[rows],
            sequences.kinds[rows],
            sequences.times_us[rows],
            video_count,
        )

    def __len__(self) -> int:
        """Users."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64Array:
        """int64 [u]: videos of each user."""
        lengths: Int64Array = np.diff(self.offsets)
        return lengths

    @property
    def users(self) -> Int64Array:
        """int64 [m]: the user of each row."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def places(self) -> Int64Array:
        """int64 [m]: how many videos a user met after that of each row; 0 for the newest."""
        return np.repeat(self.offsets[1:], self.lengths) - 1 - np.arange(len(self.videos))

    def take(self, users: Int64Array) -> "Histories":
        """Those of some users, int64 [k], in that order; nothing where one is -1."""
        known = users >= 0
        starts = np.where(known, self.offsets[:-1][users] if len(self) else 0, 0)
        counts = np.where(known, self.lengths[users] if len(self) else 0, 0)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
        return Histories(offsets, self.videos[rows], self.kinds[rows], self.times_us[rows], self.video_count)

    def newest(self, count: int) -> "Histories":
        """The same users with their newest videos alone, at most so many."""
        kept = self.places < count
        lengths = np.minimum(self.lengths, count)
        return Histories(
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            self.videos[kept],
            self.kinds[kept],
            self.times_us[kept],
            self.video_count,
        )

    def matrix(self, weights: Weights | None = None) -> sparse.csr_matrix:
        """float32 [u, videos]: 1 where a user met a video, or `weights` [m]."""
        values = np.ones(len(self.videos)) if weights is None else weights
        # A copy: sorting would put the videos here out of their order, too.
        parts = (values.astype(np.float32), self.videos.copy(), self.offsets)
        matrix = sparse.csr_matrix(parts, shape=(len(self), self.video_count))
        matrix.sort_indices()
        return matrix
