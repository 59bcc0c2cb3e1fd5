"""Intervals by the bootstrap over users.

Users are drawn with replacement; an interval goes from the 2.5th to the 97.5th percentile of the means of
such draws (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979). Targets of one user are not
independent of each other: users are.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]

DRAWS: Final = 1000
_AT_ONCE: Final = 50
_TAILS: Final = (0.025, 0.975)


def intervals(values: Float64Array, seed: int = 0, draws: int = DRAWS) -> Float64Array:
    """The ends of the 95 % intervals of means: float64 [2, m].

    Args:
        values: float64 [u, m]: m metrics of u users, at least one.
        seed: Of the draws: two calls with as many users draw the same ones.
        draws: How many samples.
    """
    rng = np.random.default_rng(seed)
    count = len(values)
    means = np.empty((draws, values.shape[1]))
    for start in range(0, draws, _AT_ONCE):
        part = means[start : start + _AT_ONCE]
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=len(part))
        part[:] = drawn @ values / count
    ends: Float64Array = np.quantile(means, _TAILS, axis=0)
    return ends
