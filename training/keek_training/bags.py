"""Training steps whose requests have several targets each: a set of videos, not the next one alone.

What a user turns to over days is a better teacher than what happened to come next, and costs less: one
position a request, and its softmax serves all its targets (Pancha et al., "PinnerFormer", 2022; Liang et al.,
"Variational Autoencoders for Collaborative Filtering", 2018).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from keek_server.towers.features import Tensors
from keek_training.config import SetTargets
from keek_training.features import BoolArray, Float32Array, Int64Array, Sequences

_US_PER_S: Final = 1e6
_LENGTHS: Final = 3


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One request of some users, by row of the sequences and by user."""

    read: BoolArray
    """bool [n]: what the history is made of."""
    asked: BoolArray
    """bool [n]: the targets."""
    now_us: Int64Array
    """int64 [users]: the moment of the request."""


class SetBatches:
    """What one epoch steps through; every epoch draws anew what is read and what is asked for.

    A user is asked once for every `most` targets, or part of that. Requests with histories of about one
    length go together, padded to a quarter of the longest, a half, or the whole: the step is compiled
    three times, and little of what it computes is padding. A last batch is filled up with requests of
    weight zero.
    """

    def __init__(
        self,
        sequences: Sequences,
        stops: Int64Array,
        *,
        length: int,
        batch_size: int,
        options: SetTargets,
        rng: np.random.Generator,
    ) -> None:
        """`stops`, int64 [users]: rows from there on are not trained on; they are held out."""
        self._sequences = sequences
        self._stops = stops
        self._length = length
        self._lengths = np.unique([max(1, length >> halved) for halved in range(_LENGTHS)])
        self._options = options
        self._rng = rng
        count = len(sequences.user_ids)
        rows = np.arange(len(sequences))
        self._users = np.repeat(np.arange(count), np.diff(sequences.offsets))
        self._open = rows < stops[self._users]
        self._weights: Float32Array = np.where(self._open, sequences.weights, 0)
        self._is_target: BoolArray = self._weights > 0
        # All that a user did with a video is hidden together.
        pairs = self._users * (int(sequences.videos.max(initial=0)) + 1) + sequences.videos
        self._pairs = np.unique(pairs, return_inverse=True)[1]
        self._targets = np.bincount(self._users[self._is_target], minlength=count)
        first = np.unique(self._pairs[self._open], return_index=True)[1]
        videos = np.bincount(self._users[self._open][first], minlength=count)
        able = (self._targets > 0) & ((videos > 1) | (options.asked == "later"))
        self._requests = np.where(able, -(-self._targets // options.most), 0)
        self._size = min(batch_size, max(1, int(self._requests.sum())))

    def __len__(self) -> int:
        """Steps an epoch."""
        return -(-int(self._requests.sum()) // self._size)

    def __iter__(self) -> Iterator[Tensors]:
        """One epoch."""
        parts = []
        for nth in range(int(self._requests.max(initial=0))):
            drawn = self._later() if self._options.asked == "later" else self._hidden()
            parts.append(self._tensors(drawn, np.flatnonzero(self._requests > nth)))
        tensors = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        lengths = self._lengths[np.searchsorted(self._lengths, (tensors["kinds"] > 0).sum(axis=1))]
        order = self._rng.permutation(len(lengths))
        order = order[np.argsort(lengths[order], kind="stable")]
        for step in self._rng.permutation(len(self)):
            rows = order[step * self._size : (step + 1) * self._size]
            missing = self._size - len(rows)
            batch = {name: values[np.pad(rows, (0, missing))] for name, values in tensors.items()}
            batch["weights"][len(rows) :] = 0
            for name in ("videos", "kinds", "ages_s"):
                batch[name] = batch[name][:, -lengths[rows].max() :]
            yield batch

    def _later(self) -> _Drawn:
        """From the moment of a target, drawn evenly: what came before is read, the rest asked for."""
        sequences = self._sequences
        first = (self._rng.random(len(self._targets)) * self._targets).astype(np.int64)[self._users]
        nth: Int64Array = np.cumsum(self._is_target) - self._is_target
        nth = nth - nth[sequences.offsets[:-1]][self._users]
        asked = self._is_target & (nth >= first)
        if self._options.horizon is not None:
            asked &= nth < first + self._options.horizon
        rows = np.arange(len(sequences))
        cuts = np.minimum.reduceat(np.where(asked, rows, len(sequences)), sequences.offsets[:-1])
        now_us = sequences.times_us[np.minimum(cuts, len(sequences) - 1)]
        read = self._open & (rows < cuts[self._users])
        return _Drawn(read, asked, now_us)

    def _hidden(self) -> _Drawn:
        """A share of the videos is hidden, itself drawn for each user: one target at least, and one video
        at least is read; what is hidden is asked for at the moment of the newest that is known."""
        sequences, starts = self._sequences, self._sequences.offsets[:-1]
        low, high = self._options.hidden_share
        shares = low + (high - low) * self._rng.random(len(self._targets))
        draws = self._rng.random(int(self._pairs.max(initial=0)) + 1)[self._pairs]
        least = np.minimum.reduceat(np.where(self._is_target, draws, 1.0), starts)
        hidden = draws <= np.maximum(least, shares)[self._users]
        # Where that is everything, the last video but the first target is left to read.
        most = np.maximum.reduceat(np.where(self._open & (draws != least[self._users]), draws, -1.0), starts)
        hidden &= draws != most[self._users]
        newest_us = sequences.times_us[np.maximum(self._stops - 1, 0)]
        return _Drawn(self._open & ~hidden, hidden & self._is_target, newest_us)

    def _tensors(self, drawn: _Drawn, users: Int64Array) -> Tensors:
        """Of one request of each of these users, filled from the right as serving fills a history."""
        sequences, length, most = self._sequences, self._length, self._options.most
        rows, places = self._newest(drawn.read, users, length, shuffled=self._options.shuffled)
        at = places[0], length - 1 - places[1]
        videos = np.zeros((len(users), length), np.int32)
        kinds, ages_s = np.zeros_like(videos), np.zeros(videos.shape, np.float32)
        videos[at], kinds[at] = sequences.videos[rows], sequences.kinds[rows]
        ages_us = drawn.now_us[self._users[rows]] - sequences.times_us[rows]
        ages_s[at] = np.maximum(ages_us, 0) / _US_PER_S
        rows, at = self._newest(drawn.asked, users, most, shuffled=True)
        targets, weights = np.zeros((len(users), most), np.int32), np.zeros((len(users), most), np.float32)
        targets[at], weights[at] = sequences.videos[rows], self._weights[rows]
        return {
            "user": sequences.users[users],
            "videos": videos,
            "kinds": kinds,
            "ages_s": ages_s,
            "targets": targets,
            "weights": weights,
        }

    def _newest(
        self, chosen: BoolArray, users: Int64Array, most: int, *, shuffled: bool
    ) -> tuple[Int64Array, tuple[Int64Array, Int64Array]]:
        """The last `most` chosen rows of each of the users: the rows; and for each which of the users has it,
        and how many follow."""
        index = np.full(len(self._targets), -1, np.int64)
        index[users] = np.arange(len(users))
        rows = np.flatnonzero(chosen & (index[self._users] >= 0))
        if shuffled:
            rows = rows[np.lexsort((self._rng.random(len(rows)), self._users[rows]))]
        counts = np.bincount(self._users[rows], minlength=len(index))
        back = np.cumsum(counts)[self._users[rows]] - 1 - np.arange(len(rows))
        kept = back < most
        return rows[kept], (index[self._users[rows[kept]]], back[kept])
