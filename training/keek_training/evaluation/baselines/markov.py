"""A Markov chain: what users met next after the videos that a user met last."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import sparse

from keek_training.evaluation.baselines.protocol import Parameters, Training
from keek_training.evaluation.histories import Histories
from keek_training.evaluation.ranking import Score
from keek_training.features import Float32Array


class Markov:
    """How often one video came within `window` videos after another, nearer ones weighing more
    (1 / distance), over all that came after that other, to a power.

    A user's last `window` videos each have a say, by the same weights.
    """

    name = "markov"
    grid: Sequence[Parameters] = tuple(
        {"window": window, "power": power} for window, power in product((1, 3, 10, 20), (0.5, 1))
    )
    most_videos = None

    def fit(self, training: Training, parameters: Parameters) -> Score:
        """See `Baseline`."""
        window = int(parameters["window"])
        following = _following(training.histories, window)
        totals = np.asarray(following.sum(axis=1)).ravel()
        scale = np.maximum(totals, 1e-9) ** -parameters["power"]
        chances = (sparse.diags_array(scale.astype(np.float32)) @ following).tocsr()

        def score(histories: Histories) -> Float32Array:
            places = histories.places
            weights = np.where(places < window, 1 / (1 + places), 0)
            return np.asarray((histories.matrix(weights) @ chances).todense(), np.float32)

        return score


def _following(histories: Histories, window: int) -> sparse.csr_array:
    """float32 [videos, videos]: how often the column's video followed the row's, by 1 / distance."""
    users, videos = histories.users, histories.videos
    shape = (histories.video_count, histories.video_count)
    counts = sparse.csr_array(shape, dtype=np.float32)
    for distance in range(1, window + 1):
        own = np.flatnonzero(users[distance:] == users[:-distance])
        values = np.full(len(own), 1 / distance, np.float32)
        counts = counts + sparse.csr_array((values, (videos[own], videos[own + distance])), shape=shape)
    return counts.tocsr()
