"""How often two videos were met by the same users: what item-kNN and EASE are made of."""

import numpy as np
from scipy import sparse

from keek_training.evaluation.baselines.protocol import Training
from keek_training.features import Float32Array


def gram(training: Training, user_power: float = 0.0) -> Float32Array:
    """float32 [videos, videos], symmetric; the diagonal counts the users of each video. Not to be changed.

    Args:
        training: Of the users.
        user_power: A user counts 1 / (videos that the user met) to this power.
    """
    key = f"gram {user_power:g}"
    found: Float32Array | None = training.memo.get(key)
    if found is None:
        matrix = training.histories.matrix()
        lengths = np.maximum(training.histories.lengths, 1).astype(np.float32)
        weighted = sparse.diags_array(lengths**-user_power) @ matrix
        found = training.memo[key] = np.asarray((matrix.T @ weighted).todense(), np.float32)
    return found
