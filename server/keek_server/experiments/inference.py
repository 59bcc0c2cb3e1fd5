"""Ratios of sums by user, compared between arms.

A metric is sum(y) / sum(d) over the users of an arm. Users are independent, what one user does is not, so the
variance comes from users: the delta method of Deng, Knoblich and Lu, "Applying the Delta Method in Metric
Analytics" (KDD 2018), as the variance of each user's influence z = (y - R d) / mean(d).

CUPED (Deng, Xu, Kohavi, Walker, "Improving the Sensitivity of Online Controlled Experiments by Utilizing
Pre-Experiment Data", WSDM 2013) takes from z what the time before predicts: R - theta (mean(x) - mean of all
x). For ratios x is linearised as z is, as in Budylin et al., "Consistent Transformation of Ratio Metrics for
Efficient Online Controlled Experiments" (WSDM 2018).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final

import numpy as np

# Not scipy.stats: a server that reports would stand still for a second or more while it is imported.
from scipy import special

from keek_server.errors import InvalidArgumentError
from keek_server.experiments.logs import FloatArray, Int16Array

SRM_THRESHOLD: Final = 0.001
"""A sample ratio less probable than this is held to be broken (Fabijan et al., KDD 2019, use such a low one,
as it is looked at often)."""
MIN_USERS: Final = 2
"""Below, an arm has no variance, and nothing is said about it."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval; NaN where nothing can be said."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A ratio of one arm."""

    value: float
    """NaN without users or without a denominator."""
    variance: float
    """Of `value`; NaN where it is not known."""
    user_count: int

    def interval(self, alpha: float) -> Interval:
        """Holds the truth with probability 1 - alpha."""
        half = _quantile(alpha) * math.sqrt(self.variance)
        return Interval(self.value - half, self.value + half)


@dataclass(frozen=True, slots=True)
class Difference:
    """An arm against the control."""

    absolute: float
    variance: float
    """Of `absolute`."""
    relative: float
    """The lift: treatment / control - 1; NaN where the control is 0."""
    relative_variance: float
    control: float
    """The control's value."""

    def interval(self, alpha: float) -> Interval:
        """Of the absolute difference, looked at once."""
        half = _quantile(alpha) * math.sqrt(self.variance)
        return Interval(self.absolute - half, self.absolute + half)

    def relative_interval(self, alpha: float) -> Interval:
        """Of the lift, looked at once."""
        half = _quantile(alpha) * math.sqrt(self.relative_variance)
        return Interval(self.relative - half, self.relative + half)

    @property
    def p_value(self) -> float:
        """Two-sided, of no difference, looked at once; NaN where nothing can be said."""
        if not self.variance > 0.0:
            return math.nan
        return float(2.0 * special.ndtr(-abs(self.absolute) / math.sqrt(self.variance)))


def estimate(numerators: FloatArray, denominators: FloatArray) -> Estimate:
    """sum(numerators) / sum(denominators) of one group of users.

    Args:
        numerators: float64 [u], a sum for each user.
        denominators: float64 [u]; not negative.
    """
    count, total = len(numerators), float(denominators.sum())
    if count == 0 or total <= 0.0:
        return Estimate(math.nan, math.nan, count)
    value = float(numerators.sum()) / total
    return Estimate(value, _variance(_influence(numerators, denominators, value)), count)


def estimates(
    arms: Int16Array,
    numerators: FloatArray,
    denominators: FloatArray,
    arm_count: int,
    covariates: FloatArray | None = None,
) -> list[Estimate]:
    """The ratio of each arm, with CUPED where there are covariates.

    Args:
        arms: int16 [u].
        numerators: float64 [u].
        denominators: float64 [u].
        arm_count: Arms are numbered from 0.
        covariates: float64 [u, c], of the time before; see `linearised`.
    """
    groups = [np.flatnonzero(arms == arm) for arm in range(arm_count)]
    plain = [estimate(numerators[own], denominators[own]) for own in groups]
    usable = [i for i, own in enumerate(plain) if own.user_count >= MIN_USERS and not math.isnan(own.value)]
    if covariates is None or not usable:
        return plain
    centre = covariates[np.concatenate([groups[i] for i in usable])].mean(axis=0)
    influences = {
        i: _influence(numerators[groups[i]], denominators[groups[i]], plain[i].value) for i in usable
    }
    within = {i: covariates[groups[i]] - covariates[groups[i]].mean(axis=0) for i in usable}
    # One theta for all arms, from what varies inside them: an effect of the arm must not be corrected away.
    theta = np.linalg.lstsq(
        np.concatenate([within[i] for i in usable]),
        np.concatenate([influences[i] for i in usable]),
        rcond=None,
    )[0]
    adjusted = list(plain)
    for i in usable:
        shift = float((covariates[groups[i]].mean(axis=0) - centre) @ theta)
        variance = _variance(influences[i] - within[i] @ theta)
        adjusted[i] = Estimate(plain[i].value - shift, variance, plain[i].user_count)
    return adjusted


def linearised(numerators: FloatArray, denominators: FloatArray) -> FloatArray:
    """float64 [u]: a ratio of the time before as a covariate; zeros where nobody has a denominator.

    A user who was not there before has 0, which is the mean.
    """
    total = float(denominators.sum())
    if total <= 0.0:
        return np.zeros(len(numerators))
    return _influence(numerators, denominators, float(numerators.sum()) / total)


def compare(treatment: Estimate, control: Estimate) -> Difference:
    """A treatment against the control; the two have no user in common."""
    absolute = treatment.value - control.value
    variance = treatment.variance + control.variance
    if not control.value:
        return Difference(absolute, variance, math.nan, math.nan, control.value)
    ratio = treatment.value / control.value
    relative_variance = (treatment.variance + ratio**2 * control.variance) / control.value**2
    return Difference(absolute, variance, ratio - 1.0, relative_variance, control.value)


def compare_paired(
    numerators: FloatArray,
    denominators: FloatArray,
    control_numerators: FloatArray,
    control_denominators: FloatArray,
) -> Difference:
    """A ratio against another one of the very same users: float64 [u] each."""
    own, control = estimate(numerators, denominators), estimate(control_numerators, control_denominators)
    if math.isnan(own.value) or not control.value:
        return Difference(own.value - control.value, math.nan, math.nan, math.nan, control.value)
    influence = _influence(numerators, denominators, own.value)
    control_influence = _influence(control_numerators, control_denominators, control.value)
    ratio = own.value / control.value
    return Difference(
        own.value - control.value,
        _variance(influence - control_influence),
        ratio - 1.0,
        _variance(influence - ratio * control_influence) / control.value**2,
        control.value,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold together for all of several comparisons with the control (Holm 1979); NaN stays."""
    adjusted, highest = list(p_values), 0.0
    known = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    for rank, i in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


@dataclass(frozen=True, slots=True)
class SampleRatio:
    """Whether as many users came to each arm as should have."""

    expected: tuple[float, ...]
    """Users."""
    p_value: float
    """NaN without users."""
    is_broken: bool
    """Then something loses or moves users, and no figure of the experiment can be trusted."""


def sample_ratio(user_counts: Sequence[int], weights: Sequence[float]) -> SampleRatio:
    """A chi-square test of the number of users in each arm.

    Args:
        user_counts: Of each arm.
        weights: What each arm should have had, in any unit. An arm of weight 0 is left out: testers alone see
        it.

    Raises:
        InvalidArgumentError: When the two are not of one length, or a weight is negative.
    """
    if len(user_counts) != len(weights) or not all(weight >= 0.0 for weight in weights):
        raise InvalidArgumentError.of("weights", "must be one an arm, and not negative")
    total, scale = sum(compress(user_counts, weights)), sum(weights)
    expected = [total * weight / scale if weight else 0.0 for weight in weights]
    tested = [(own, mean) for own, mean in zip(user_counts, expected, strict=True) if mean]
    if len(tested) < 2:
        return SampleRatio(tuple(expected), math.nan, False)
    distance = sum((own - mean) ** 2 / mean for own, mean in tested)
    p_value = float(special.chdtrc(len(tested) - 1, distance))
    return SampleRatio(tuple(expected), p_value, p_value < SRM_THRESHOLD)


def _quantile(alpha: float) -> float:
    return -float(special.ndtri(alpha / 2))


def _influence(numerators: FloatArray, denominators: FloatArray, value: float) -> FloatArray:
    influence: FloatArray = (numerators - value * denominators) / denominators.mean()
    return influence


def _variance(influence: FloatArray) -> float:
    if len(influence) < MIN_USERS:
        return math.nan
    return float(influence.var(ddof=1)) / len(influence)
