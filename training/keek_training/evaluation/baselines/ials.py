"""iALS: matrix factorisation for implicit feedback, by the package `implicit`."""

from collections.abc import Sequence
from itertools import product
from typing import Final

import numpy as np
from threadpoolctl import threadpool_limits

from keek_server.errors import SetupError
from keek_training.evaluation.baselines.protocol import Parameters, Training
from keek_training.evaluation.histories import Histories
from keek_training.evaluation.ranking import Score
from keek_training.features import Float32Array

_FACTORS: Final = 64
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
        try:
            from implicit.cpu.als import AlternatingLeastSquares
        except ImportError as error:
            raise SetupError(f"the baseline ials needs the extra keek[training] ({error})") from error

        # Its own threads and those of BLAS would get in each other's way, of which it warns when it is made.
        with threadpool_limits(1, "blas"):
            model = AlternatingLeastSquares(
                factors=_FACTORS,
                iterations=_ITERATIONS,
                alpha=parameters["alpha"],
                regularization=parameters["regularization"],
                num_threads=1,
                random_state=_SEED,
            )
            model.fit(training.histories.matrix(), show_progress=False)

        def score(histories: Histories) -> Float32Array:
            users = model.recalculate_user(np.arange(len(histories)), histories.matrix())
            return np.asarray(users @ model.item_factors.T, np.float32)

        return score
