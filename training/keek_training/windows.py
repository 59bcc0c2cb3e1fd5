"""Stretches of users' sequences, cut and filled as the user tower reads a history.

A window ends with a request: the moment of one interaction, which is the target, while
what came before it is the history. Causal attention gives a vector for every position, so
one window trains the requests within it too.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keek_server.towers.features import Int32Array
from keek_training.features import BoolArray, Float32Array, Int64Array, Sequences

_US_PER_S = 1e6


@dataclass(frozen=True, slots=True)
class Windows:
    """w windows; rows are rows of the sequences."""

    users: Int64Array
    """int64 [w]: index of the user."""
    starts: Int64Array
    """int64 [w]: the user's first row; the history begins there at the earliest."""
    ends: Int64Array
    """int64 [w]: the row whose moment is the request; the history ends before it."""
    trained_after: Int64Array
    """int64 [w]: rows after this one, up to the end, are this window's targets."""

    def __len__(self) -> int:
        return len(self.ends)

    def take(self, index: npt.NDArray[np.integer]) -> "Windows":
        """Some of them."""
        return Windows(self.users[index], self.starts[index], self.ends[index], self.trained_after[index])


@dataclass(frozen=True, slots=True)
class Filled:
    """Windows as tensors: w windows of `length` positions, padded on the left."""

    users: Int32Array
    """int32 [w, 2]: hashes."""
    videos: Int32Array
    """int32 [w, length]: rows in the catalogue; 0 pads."""
    kinds: Int32Array
    """int32 [w, length]: InteractionKind; 0 pads."""
    ages_s: Float32Array
    """float32 [w, length]: seconds before the window's request; 0 pads."""
    targets: Int32Array
    """int32 [w, length]: the video that came after each position."""
    weights: Float32Array
    """float32 [w, length]: what each target weighs; 0 where there is none."""


@dataclass(frozen=True, slots=True)
class Split:
    """What is trained on, and the requests that are held out."""

    training: Windows
    validation: Windows


def split(
    sequences: Sequences,
    length: int,
    validation_users: int,
    rng: np.random.Generator,
    overlap: float = 0.5,
) -> Split:
    """Cuts training windows, leaving out what some users did from their last target on.

    Args:
        sequences: All users.
        length: Positions of a window.
        validation_users: How many users' last target is held out; fewer where fewer have one
            that something came before.
        rng: Draws those users.
        overlap: Share of a window that the next older one reads again.
    """
    starts, stops = sequences.offsets[:-1], sequences.offsets[1:].copy()
    held = _last_targets(sequences)
    able = np.flatnonzero(held > starts)
    drawn = np.sort(rng.permutation(able)[:validation_users])
    stops[drawn] = held[drawn]
    validation = Windows(drawn, starts[drawn], held[drawn], held[drawn] - 1)
    return Split(_cut(sequences, starts, stops, length, overlap), validation)


def _last_targets(sequences: Sequences) -> Int64Array:
    """Each user's last row that is a target; -1 without any."""
    rows = np.where(sequences.weights > 0, np.arange(len(sequences)), -1)
    if not len(rows):
        return np.full(len(sequences.user_ids), -1)
    last: Int64Array = np.maximum.reduceat(rows, sequences.offsets[:-1])
    return np.where(last >= sequences.offsets[:-1], last, -1)


def _cut(sequences: Sequences, starts: Int64Array, stops: Int64Array, length: int, overlap: float) -> Windows:
    """Windows over the rows [starts, stops) of each user, newest first.

    Every target is trained once, and its history is at least as long as windows overlap, or the whole
    that the user has. One window is enough for `length` rows.
    """
    stride = max(1, round(length * (1.0 - overlap)))
    rows = stops - starts
    counts = np.where(rows > 0, 1 + np.maximum(0, -((length - rows) // stride)), 0)
    users = np.repeat(np.arange(len(starts)), counts)
    nth = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    ends = stops[users] - 1 - nth * stride
    oldest = nth == counts[users] - 1
    windows = Windows(users, starts[users], ends, np.where(oldest, starts[users] - 1, ends - stride))
    return windows.take(np.flatnonzero(_has_target(sequences, windows)))


def _has_target(sequences: Sequences, windows: Windows) -> BoolArray:
    """Whether a window trains anything."""
    before = np.concatenate([[0], np.cumsum(sequences.weights > 0)])
    return before[windows.ends + 1] > before[windows.trained_after + 1]


def fill(sequences: Sequences, windows: Windows, length: int) -> Filled:
    """The tensors of the windows, as `keek_server.towers.features.user_features` fills them."""
    rows = windows.ends[:, None] - np.arange(length, 0, -1)
    own = rows >= windows.starts[:, None]
    after = rows + 1
    # The position before a user's first interaction is a request too: with an empty history.
    trained = (after > windows.trained_after[:, None]) & (after <= windows.ends[:, None])
    trained &= after >= windows.starts[:, None]
    rows, after = np.maximum(rows, 0), np.maximum(after, 0)
    ages_us = sequences.times_us[windows.ends][:, None] - sequences.times_us[rows]
    return Filled(
        users=sequences.users[windows.users],
        videos=np.where(own, sequences.videos[rows], 0),
        kinds=np.where(own, sequences.kinds[rows], 0),
        ages_s=np.where(own, ages_us / _US_PER_S, 0).astype(np.float32),
        targets=sequences.videos[after],
        weights=np.where(trained, sequences.weights[after], 0),
    )
