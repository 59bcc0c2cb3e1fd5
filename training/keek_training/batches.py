"""Training steps: windows in a new order every epoch, always of the same shapes."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from keek_server.towers.features import Int32Array, Tensors
from keek_training.features import Float32Array, Sequences
from keek_training.windows import Windows, fill

# Targets a batch may hold beyond the mean, in standard deviations.
_SPARE_DEVIATIONS: Final = 4.0
_ROUND: Final = 64


class Batches:
    """What one epoch steps through.

    Shapes never change, so that the step is compiled once: a last batch is filled up with
    windows of weight zero, and the list of trained positions has room for what all but
    one batch in ten thousand hold; what such a batch has beyond is drawn out by chance.
    """

    def __init__(
        self,
        sequences: Sequences,
        windows: Windows,
        *,
        length: int,
        batch_size: int,
        negatives: "Negatives | None",
        rng: np.random.Generator,
    ) -> None:
        self._sequences = sequences
        self._windows = windows
        self._length = length
        self._size = min(batch_size, max(1, len(windows)))
        self._negatives = negatives
        self._rng = rng
        self._slots = self._target_slots()

    def __len__(self) -> int:
        """Steps an epoch."""
        return -(-len(self._windows) // self._size)

    def __iter__(self) -> Iterator[Tensors]:
        """One epoch."""
        order = self._rng.permutation(len(self._windows))
        for start in range(0, len(order), self._size):
            yield self._batch(order[start : start + self._size])

    def _batch(self, rows: np.ndarray) -> Tensors:
        missing = self._size - len(rows)
        filled = fill(self._sequences, self._windows.take(np.pad(rows, (0, missing))), self._length)
        weights = filled.weights.copy()
        weights[len(rows) :] = 0
        positions = np.flatnonzero(weights)
        if len(positions) > self._slots:
            positions = np.sort(self._rng.permutation(positions)[: self._slots])
        own = len(positions)
        positions = np.pad(positions, (0, self._slots - own)).astype(np.int32)
        kept = weights.ravel()[positions]
        kept[own:] = 0
        batch: Tensors = {
            "user": filled.users,
            "videos": filled.videos,
            "kinds": filled.kinds,
            "ages_s": filled.ages_s,
            "positions": positions,
            "targets": filled.targets.ravel()[positions],
            "weights": kept,
        }
        return self._negatives.add_to(batch, self._rng) if self._negatives else batch

    def _target_slots(self) -> int:
        """Room for the targets of nearly every batch."""
        counts = np.zeros(len(self._windows))
        for start in range(0, len(counts), 4096):
            part = self._windows.take(np.arange(start, min(start + 4096, len(counts))))
            counts[start : start + 4096] = np.count_nonzero(
                fill(self._sequences, part, self._length).weights, axis=1
            )
        spare = _SPARE_DEVIATIONS * counts.std() * self._size**0.5
        wanted = int(np.ceil((counts.mean() * self._size + spare) / _ROUND)) * _ROUND
        return min(wanted, self._size * self._length)


class Mixed:
    """Batches of windows that are padded to different lengths, in a new order every epoch."""

    def __init__(self, parts: Sequence[Batches], rng: np.random.Generator) -> None:
        self._parts = parts
        self._rng = rng

    def __len__(self) -> int:
        """Steps an epoch."""
        return sum(len(part) for part in self._parts)

    def __iter__(self) -> Iterator[Tensors]:
        """One epoch."""
        running = [iter(part) for part in self._parts]
        order = np.repeat(np.arange(len(running)), [len(part) for part in self._parts])
        for part in self._rng.permutation(order):
            yield next(running[part])


class Negatives:
    """Negatives that all targets of a step share, half drawn evenly, half as targets occur."""

    def __init__(self, targets_by_video: Float32Array, count: int) -> None:
        """`targets_by_video`: [videos], how often each is a target, not all 0; `count`: draws a step."""
        videos = len(targets_by_video)
        probabilities = 0.5 / videos + 0.5 * targets_by_video / float(targets_by_video.sum())
        self._cumulated = np.cumsum(probabilities)
        self._log_expected = np.log(count * probabilities).astype(np.float32)
        self._count = count

    def add_to(self, batch: Tensors, rng: np.random.Generator) -> Tensors:
        """The batch with candidates: the videos in it and the negatives, each once."""
        drawn = self._draw(rng)
        parts = (batch["videos"].ravel(), batch["targets"], drawn)
        room = min(sum(len(part) for part in parts), len(self._cumulated))
        candidates, places = np.unique(np.concatenate(parts), return_inverse=True)
        places = places.astype(np.int32)
        candidates = np.pad(candidates, (0, room - len(candidates))).astype(np.int32)
        history, targets, negatives = np.split(places, np.cumsum([len(part) for part in parts])[:-1])
        return batch | {
            "candidates": candidates,
            "videos": history.reshape(batch["videos"].shape),
            "targets": targets,
            "negatives": negatives,
            "log_expected": self._log_expected[drawn],
        }

    def _draw(self, rng: np.random.Generator) -> Int32Array:
        draws = rng.random(self._count) * self._cumulated[-1]
        found: Int32Array = np.searchsorted(self._cumulated, draws).astype(np.int32)
        return np.minimum(found, len(self._cumulated) - 1, dtype=np.int32)
