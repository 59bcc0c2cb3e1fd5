"""Item-kNN: videos like those that a user met, by cosine over users."""

from collections.abc import Sequence
from itertools import product
from typing import Final

import numpy as np
from scipy import sparse

from keek_training.evaluation.baselines.gram import gram
from keek_training.evaluation.baselines.protocol import Parameters, Training
from keek_training.evaluation.ranking import Score
from keek_training.features import Float32Array


class ItemKnn:
    """Cosine similarity, of the nearest neighbours alone (Sarwar et al., "Item-based collaborative filtering
    recommendation algorithms", 2001), shrunk where few users say anything (Ferrari Dacrema et al., "Are We
    Really Making Much Progress?", 2019), or with users of many videos counting less for each (Deshpande and
    Karypis, "Item-based top-N recommendation algorithms", 2004)."""

    name = "itemknn"
    grid: Sequence[Parameters] = tuple(
        {"neighbours": neighbours, "shrink": shrink, "user_power": power}
        for neighbours, (shrink, power) in product((50, 200, 1000), ((0, 0), (20, 0), (100, 0), (0, 1)))
    )
    most_videos: Final = 20_000

    def fit(self, training: Training, parameters: Parameters) -> Score:
        """See `Baseline`."""
        shared = gram(training, parameters["user_power"])
        nearest = _nearest(shared, int(parameters["neighbours"]), parameters["shrink"])
        return lambda histories: np.asarray((histories.matrix() @ nearest).todense(), np.float32)


def _nearest(shared: Float32Array, neighbours: int, shrink: float) -> sparse.csr_matrix:
    """float32 [videos, videos]: each column has the similarities of its nearest videos."""
    count = len(shared)
    norms = np.sqrt(shared.diagonal())
    similarities = shared / (norms[:, None] * norms[None, :] + shrink + 1e-9)
    np.fill_diagonal(similarities, 0)
    if neighbours < count:
        # Symmetric so far: rows are sorted out, and turned into columns.
        bounds = np.partition(similarities, count - neighbours, axis=1)[:, count - neighbours]
        similarities[similarities < bounds[:, None]] = 0
    return sparse.csr_matrix(similarities).T.tocsr()
