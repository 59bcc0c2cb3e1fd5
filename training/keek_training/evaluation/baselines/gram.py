"""How often two videos were met by the same users: what item-kNN and EASE are made of."""

import numpy as np

from keek_training.evaluation.baselines.protocol import Training
from keek_training.features import Float32Array


def gram(training: Training) -> Float32Array:
    """float32 [videos, videos], symmetric; the diagonal counts the users of each video. Not to be changed."""
    found: Float32Array | None = training.memo.get("gram")
    if found is None:
        matrix = training.histories.matrix()
        found = training.memo["gram"] = np.asarray((matrix.T @ matrix).todense(), np.float32)
    return found
