"""Ranks of held-out targets among all videos, what the user has seen excluded."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from keek_server.towers.features import Tensors
from keek_training.features import Float32Array, Int64Array, Sequences
from keek_training.windows import Windows, fill

_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Quality:
    """Means over the held-out requests, one target each."""

    recall_at_10: float
    ndcg_at_10: float

    @classmethod
    def of_ranks(cls, ranks: Int64Array) -> "Quality":
        """Ranks count from 0."""
        gains = 1 / np.log2(ranks + 2)
        hit = ranks < 10
        return cls(float(hit.mean()), float(np.where(hit, gains, 0).mean()))

    def as_metrics(self, prefix: str = "") -> dict[str, float]:
        """By the names that metrics.json uses."""
        return {f"{prefix}recall@10": self.recall_at_10, f"{prefix}ndcg@10": self.ndcg_at_10}


Score = Callable[[Windows], Float32Array]
"""Gives float32 [requests, videos], the higher the better."""


def popular(counts: Float32Array) -> Score:
    """The same order for everyone: float32 [videos], how often each is a target."""
    return lambda requests: np.broadcast_to(counts, (len(requests), len(counts)))


def quality(sequences: Sequences, requests: Windows, score: Score) -> Quality:
    """The quality of a recommender.

    Args:
        sequences: All users.
        requests: The held-out ones, at least one; the end of each is its target.
        score: The recommender.
    """
    ranks = []
    for start in range(0, len(requests), _CHUNK):
        part = requests.take(np.arange(start, min(start + _CHUNK, len(requests))))
        ranks.append(_ranks(sequences, part, score(part)))
    return Quality.of_ranks(np.concatenate(ranks))


def _ranks(sequences: Sequences, requests: Windows, scores: Float32Array) -> Int64Array:
    """How many unseen videos score at least as high as each target; NaN ranks last."""
    scores = np.nan_to_num(scores, nan=-np.inf, posinf=-np.inf)
    targets = sequences.videos[requests.ends]
    own = scores[np.arange(len(targets)), targets][:, None]
    lengths = requests.ends - requests.starts
    users = np.repeat(np.arange(len(lengths)), lengths)
    rows = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    seen = sequences.videos[requests.starts[users] + rows]
    ahead = scores >= own
    ahead[users, seen] = False
    ahead[np.arange(len(targets)), targets] = False
    ranks: Int64Array = np.count_nonzero(ahead, axis=1)
    return ranks


def target_counts(sequences: Sequences, windows: Windows, videos: int, length: int) -> Float32Array:
    """float32 [videos]: how often each is a target of the windows."""
    counts = np.zeros(videos)
    for start in range(0, len(windows), _CHUNK):
        filled = fill(sequences, windows.take(np.arange(start, min(start + _CHUNK, len(windows)))), length)
        counts += np.bincount(filled.targets[filled.weights > 0], minlength=videos)
    return counts.astype(np.float32)


def serving_inputs(sequences: Sequences, requests: Windows, vectors: Float32Array, length: int) -> Tensors:
    """Inputs of the user tower at these requests, as serving makes them."""
    filled = fill(sequences, requests, length)
    return {
        "user": filled.users,
        "history_vectors": vectors[filled.videos] * (filled.kinds > 0)[..., None],
        "history_kinds": filled.kinds,
        "history_ages_s": filled.ages_s,
    }
