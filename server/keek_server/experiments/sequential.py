"""Looking as often as one likes: always-valid p-values and confidence sequences.

The mixture sequential probability ratio test of Johari, Koomen, Pekelis and Walsh, "Peeking at A/B Tests"
(KDD 2017; "Always Valid Inference", Operations Research 2022), with a normal mixture N(0, tau^2) over the
effect. For an effect d that is estimated with variance v, the likelihood ratio is

    L = sqrt(v / (v + tau^2)) exp(tau^2 d^2 / (2 v (v + tau^2)))

Under no effect L is a martingale of mean 1, at least for as many users as the central limit theorem needs,
and by Ville's inequality passes 1 / alpha with a probability of at most alpha, ever. So p = min(1, 1 / L) may
be looked at at any time, and the effects whose L stays below 1 / alpha are a confidence sequence. It is wider
than an interval of one look. The variance is that of the data so far.

Any tau that is fixed beforehand is valid. The sequence is 3 to 4 standard errors wide on each side while tau
is 1 to 50 standard errors, and soon much wider when tau is smaller: rather too large than too small.
"""

import math
from typing import Final

from keek_server.errors import InvalidArgumentError
from keek_server.experiments.inference import Difference, Interval

TAU_RELATIVE: Final = 0.05
"""The default tau, as a share of the control's value: sharp for lifts that are known to 0.2 to 5 %. As a
share it needs no knowledge of the metric, and stays as it is while the sums of users grow."""


def always_valid_p(effect: float, variance: float, tau: float) -> float:
    """min(1, 1 / L); NaN where nothing can be said.

    Raises:
        InvalidArgumentError: When tau is not positive.
    """
    _check(tau)
    if not (variance > 0.0 and math.isfinite(effect)):
        return math.nan
    total = variance + tau**2
    log_ratio = 0.5 * math.log(variance / total) + tau**2 * effect**2 / (2.0 * variance * total)
    return math.exp(min(0.0, -log_ratio))


def confidence_sequence(effect: float, variance: float, tau: float, alpha: float) -> Interval:
    """Holds the true effect at all looks together with probability 1 - alpha.

    Raises:
        InvalidArgumentError: When tau is not positive.
    """
    _check(tau)
    if not (variance > 0.0 and math.isfinite(effect)):
        return Interval(math.nan, math.nan)
    total = variance + tau**2
    bound = 2.0 * math.log(1.0 / alpha) + math.log(total / variance)
    half = math.sqrt(variance * total / tau**2 * bound)
    return Interval(effect - half, effect + half)


def sequential_p(difference: Difference, tau_relative: float = TAU_RELATIVE) -> float:
    """The always-valid p-value of a comparison; NaN where the control is 0."""
    tau = tau_relative * abs(difference.control)
    return always_valid_p(difference.absolute, difference.variance, tau) if tau > 0.0 else math.nan


def sequential_relative_interval(
    difference: Difference, alpha: float, tau_relative: float = TAU_RELATIVE
) -> Interval:
    """The confidence sequence of the lift."""
    return confidence_sequence(difference.relative, difference.relative_variance, tau_relative, alpha)


def _check(tau: float) -> None:
    if not (tau > 0.0 and math.isfinite(tau)):
        raise InvalidArgumentError.of("tau", "must be positive and finite")
