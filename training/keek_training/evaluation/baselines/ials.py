"""iALS: matrix factorisation for implicit feedback, by the package `implicit`."""

from collections.abc import Sequence
from itertools import product
from typing import Final

import numpy as np

from keek_training.evaluation.baselines.protocol import Parameters, Training
from keek_training.evaluation.histories import Histories
from keek_training.evaluation.ranking import Score
from keek_training.features import Float32Array
from keek_training.ials import fitted_ials

_ITERATIONS: Final = 15
_SEED: Final = 1


class Ials:
    """Hu et al., "Collaborative Filtering for Implicit Feedback Datasets", 2008, with 64 factors.

    A user's factors are solved for from the history at the request, whoever the user is. Tuned as it should
    be it is hard to beat (Rendle et al., "Revisiting the Performance of iALS on Item Recommendation
    Benchmarks", 2022).
    """

    name = "ials"
    grid: Sequence[Parameters] = tuple(
        # Few interactions a user, as on TikTok, want much of both.
        {"alpha": alpha, "regularization": alpha * own}
        for alpha, own in product((3, 10, 30, 300), (3, 10, 30))
    )
    most_videos = None

    def fit(self, training: Training, parameters: Parameters) -> Score:
        """See `Baseline`.

        Raises:
            SetupError: When `implicit` is not installed.
        """
        model = fitted_ials(
            training.histories.matrix(),
            iterations=_ITERATIONS,
            alpha=parameters["alpha"],
            regularization=parameters["regularization"],
            seed=_SEED,
            who="the baseline ials needs",
        )

        def score(histories: Histories) -> Float32Array:
            users = model.recalculate_user(np.arange(len(histories)), histories.matrix())
            return np.asarray(users @ model.item_factors.T, np.float32)

        return score
