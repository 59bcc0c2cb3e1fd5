"""What another policy would have earned, from the log of this one.

Every slot is an observation: what it showed, with which probability, and what it earned. With the weight w =
target probability / logged probability of what it shows, and m slots,

- IPS: sum(w r) / m (Horvitz and Thompson, JASA 1952), without bias where the logged policy may show all that
the
  target may;
- SNIPS: sum(w r) / sum(w) (Swaminathan and Joachims, NIPS 2015), with less variance and a little bias;
- DR: mean of q(target) + w (r - q(shown)) (Dudik, Langford and Li, ICML 2011), where q predicts rewards,
fitted to
  other users than it is asked about.

All are ratios of sums by user, so their intervals come from users (`inference`). Slots are taken by
themselves: what one slot shows may change what another earns only through what the weights know of
(`split_replay` counts how deep into its source a slot reaches). A user who leaves earlier with the other
policy is not seen."""

import math
from dataclasses import dataclass

import numpy as np

from keek_server.errors import FailedPreconditionError, InvalidArgumentError
from keek_server.experiments.inference import (
    Difference,
    Estimate,
    Interval,
    compare_paired,
    estimate,
)
from keek_server.experiments.logs import BoolArray, FloatArray, Int64Array


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a reward model says of m slots."""

    target: FloatArray
    """[m]: the expected reward under the target policy."""
    shown: FloatArray
    """[m]: that of what was shown."""


@dataclass(frozen=True, slots=True)
class Earned:
    """What a policy earns a slot."""

    estimate: Estimate
    difference: Difference
    """From the logged policy, on the very same slots."""
    interval: Interval
    lift_interval: Interval


@dataclass(frozen=True, slots=True)
class Replay:
    """A target policy, by each estimator; values are rewards a slot."""

    logged: Estimate
    """What the logged policy earned, on the slots that were used."""
    ips: Earned
    snips: Earned
    dr: Earned | None
    """None without a reward model."""
    slot_count: int
    """Slots that were used."""
    left_out_share: float
    """Of all slots, those whose propensity is not known, or that the log could not have shown otherwise."""
    effective_slot_count: float
    """sum(w)^2 / sum(w^2): as many slots of the target policy itself would say as much (Kish 1965)."""
    max_weight: float
    mean_weight: float
    """About 1 where the propensities are right."""


def replay(
    users: Int64Array,
    rewards: FloatArray,
    logged: FloatArray,
    target: FloatArray,
    *,
    predictions: Predictions | None = None,
    usable: BoolArray | None = None,
    alpha: float = 0.05,
) -> Replay:
    """Estimates what a target policy earns.

    Args:
        users: int64 [m], the user of each slot.
        rewards: float64 [m], what each slot earned.
        logged: float [m], with which probability the slot showed what it did; NaN where it is not known.
        target: float [m], the same under the target policy; 0 is allowed.
        predictions: Of a reward model; without, there is no DR.
        usable: bool [m], slots that may be used; all without.
        alpha: Intervals hold with probability 1 - alpha.

    Raises:
        FailedPreconditionError: When no slot can be used.
        InvalidArgumentError: When a target probability is not one.
    """
    if ((target < 0.0) | (target > 1.0 + 1e-6)).any():
        raise InvalidArgumentError.of("target", "must lie in [0, 1]")
    kept = np.isfinite(logged) & np.isfinite(target)
    if usable is not None:
        kept &= usable
    if not kept.any():
        raise FailedPreconditionError(
            "no slot of the log can be replayed: none has a propensity that leaves another choice; serve with"
            " some exploration first"
        )
    _, places = np.unique(users[kept], return_inverse=True)
    weights, earned = target[kept] / logged[kept].astype(np.float64), rewards[kept]
    logged_sums, slots, weighted, weight_sums = (
        _by_user(places, own) for own in (earned, np.ones(len(earned)), weights * earned, weights)
    )
    dr = None
    if predictions is not None:
        corrected = predictions.target[kept] + weights * (earned - predictions.shown[kept])
        dr = _earned(_by_user(places, corrected), slots, logged_sums, slots, alpha)
    squares = float((weights**2).sum())
    return Replay(
        logged=estimate(logged_sums, slots),
        ips=_earned(weighted, slots, logged_sums, slots, alpha),
        snips=_earned(weighted, weight_sums, logged_sums, slots, alpha),
        dr=dr,
        slot_count=int(kept.sum()),
        left_out_share=1.0 - float(kept.mean()),
        effective_slot_count=float(weights.sum()) ** 2 / squares if squares else math.nan,
        max_weight=float(weights.max()),
        mean_weight=float(weights.mean()),
    )


def _by_user(places: Int64Array, values: FloatArray) -> FloatArray:
    return np.bincount(places, values).astype(np.float64)


def _earned(
    numerators: FloatArray,
    denominators: FloatArray,
    logged: FloatArray,
    slots: FloatArray,
    alpha: float,
) -> Earned:
    own = estimate(numerators, denominators)
    difference = compare_paired(numerators, denominators, logged, slots)
    return Earned(own, difference, own.interval(alpha), difference.relative_interval(alpha))
