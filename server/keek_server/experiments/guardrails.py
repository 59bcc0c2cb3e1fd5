"""What no arm may spoil: slow, empty, short and degraded feeds, watched by tests that may be looked at
always.

Each arm is compared with the control by confidence sequences (`sequential`) over users. An arm is to stop
when the whole sequence lies beyond what is allowed, and in order when the whole of it lies within.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from keek_server.experiments.inference import Difference, Estimate, Interval, compare, estimates
from keek_server.experiments.logs import BoolArray, Float32Array, FloatArray, Int16Array, Int64Array
from keek_server.experiments.sequential import confidence_sequence

_SLOW_QUANTILE: Final = 0.99
_LEAST_TAU: Final = 0.01
"""Of the mixtures, which are about as wide as what is allowed; that may be nothing."""


@dataclass(frozen=True, slots=True)
class FeedHealth:
    """How n feeds went."""

    users: Int64Array
    """[n]: codes."""
    arms: Int16Array
    """[n]: numbers of arms; -1 where the feed belongs to none."""
    latencies_ms: Float32Array
    """[n]: what the server took for it."""
    asked: Int64Array
    """[n]: slots that were asked for."""
    served: Int64Array
    """[n]: slots that were filled."""
    is_degraded: BoolArray
    """[n]: whether a source could not do its part."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much worse than the control an arm may be; what is None is not watched."""

    latency_relative: float | None = 0.10
    """Of the mean latency, as a share of the control's."""
    slow_share: float | None = 0.01
    """Of feeds slower than the control's 99th percentile, of which the control has 0.01: twice as many by
    default. That is a bound on the 99th percentile, as a share that can be tested."""
    empty_share: float | None = 0.005
    short_share: float | None = 0.02
    """Of feeds with fewer videos than were asked for, empty ones included."""
    degraded_share: float | None = 0.02
    min_users: int = 100
    """With fewer in either arm nothing is said."""
    alpha: float = 0.01
    """The probability, over all looks, arms and guardrails together, to stop an arm that is within bounds."""


class Verdict(StrEnum):
    """What is known."""

    OK = "ok"
    STOP = "stop"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Guardrail:
    """One of them, of one arm."""

    name: str
    control: float
    value: float
    difference: Interval
    """The confidence sequence of what is bounded: a share of the control's where `is_relative`."""
    bound: float
    is_relative: bool
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class ArmVerdict:
    """All guardrails of one arm."""

    arm: int
    verdict: Verdict
    """STOP when any says so, OK when all do."""
    reason: str
    guardrails: tuple[Guardrail, ...]


def judge(
    health: FeedHealth, arm_count: int, bounds: Bounds | None = None, control: int = 0
) -> list[ArmVerdict]:
    """A verdict for each arm but the control, in their order.

    Args:
        health: Feeds of the experiment so far.
        arm_count: Arms are numbered from 0.
        bounds: The defaults without.
        control: The arm that the others are compared with.
    """
    bounds = bounds or Bounds()
    # A user who moved is a unit in each arm.
    units, places = np.unique(health.users * (arm_count + 1) + health.arms + 1, return_inverse=True)
    arms = (units % (arm_count + 1) - 1).astype(np.int16)
    feeds = np.bincount(places, minlength=len(units)).astype(np.float64)
    found: dict[int, list[Guardrail]] = {arm: [] for arm in range(arm_count) if arm != control}
    measures = _measures(health, control, bounds)
    alpha = bounds.alpha / max(1, len(found) * len(measures))
    for name, values, bound, is_relative in measures:
        sums = np.bincount(places, values, minlength=len(units)).astype(np.float64)
        ratios = estimates(arms, sums, feeds, arm_count)
        if not is_relative:
            ratios = [_at_least_binomial(own) for own in ratios]
        for arm, guardrails in found.items():
            pair = ratios[arm], ratios[control]
            guardrails.append(_guardrail(name, pair, bound, alpha, bounds.min_users, is_relative=is_relative))
    return [_together(arm, guardrails) for arm, guardrails in found.items()]


def _measures(health: FeedHealth, control: int, bounds: Bounds) -> list[tuple[str, FloatArray, float, bool]]:
    """Names, values of each feed, bounds, and whether those are shares of the control's value."""
    latencies = health.latencies_ms.astype(np.float64)
    of_control = latencies[health.arms == control]
    slow_ms = float(np.quantile(of_control, _SLOW_QUANTILE)) if len(of_control) else math.inf
    measures = [
        ("mean latency in ms", latencies, bounds.latency_relative, True),
        ("slow feeds", latencies > slow_ms, bounds.slow_share, False),
        ("empty feeds", health.served == 0, bounds.empty_share, False),
        ("short feeds", health.served < health.asked, bounds.short_share, False),
        ("degraded feeds", health.is_degraded, bounds.degraded_share, False),
    ]
    return [
        (name, values.astype(np.float64), bound, is_relative)
        for name, values, bound, is_relative in measures
        if bound is not None
    ]


def _at_least_binomial(own: Estimate) -> Estimate:
    """What has not happened yet may still happen: a variance as of one more success and one more failure
    among as many feeds as there are users (Agresti and Caffo, The American Statistician 2000)."""
    if own.user_count == 0 or math.isnan(own.value):
        return own
    share = (own.value * own.user_count + 1.0) / (own.user_count + 2.0)
    least = share * (1.0 - share) / own.user_count
    return Estimate(own.value, max(own.variance, least), own.user_count)


def _guardrail(
    name: str,
    pair: tuple[Estimate, Estimate],
    bound: float,
    alpha: float,
    min_users: int,
    *,
    is_relative: bool,
) -> Guardrail:
    own, control = pair
    difference = compare(own, control)
    sequence = _sequence(difference, bound, alpha, is_relative=is_relative)
    unit = " of the control's" if is_relative else ""
    if min(own.user_count, control.user_count) < min_users:
        verdict, reason = Verdict.UNKNOWN, f"fewer than {min_users} users in this arm or in the control"
    elif math.isnan(sequence.low):
        verdict, reason = Verdict.UNKNOWN, "there is nothing to compare"
    else:
        verdict = Verdict.UNKNOWN
        if sequence.low > bound:
            verdict = Verdict.STOP
        elif sequence.high <= bound:
            verdict = Verdict.OK
        reason = (
            f"{own.value:.4g} against {control.value:.4g}: worse by {sequence.low:+.4g} to "
            f"{sequence.high:+.4g}{unit}, at most {bound:.4g} is allowed"
        )
    return Guardrail(name, control.value, own.value, sequence, bound, is_relative, verdict, reason)


def _sequence(difference: Difference, bound: float, alpha: float, *, is_relative: bool) -> Interval:
    tau = max(bound, _LEAST_TAU)
    if is_relative:
        return confidence_sequence(difference.relative, difference.relative_variance, tau, alpha)
    return confidence_sequence(difference.absolute, difference.variance, tau, alpha)


def _together(arm: int, guardrails: list[Guardrail]) -> ArmVerdict:
    for verdict in (Verdict.STOP, Verdict.UNKNOWN):
        if named := [own for own in guardrails if own.verdict is verdict]:
            reason = "; ".join(f"{own.name}: {own.reason}" for own in named)
            return ArmVerdict(arm, verdict, reason, tuple(guardrails))
    return ArmVerdict(arm, Verdict.OK, "all guardrails are within their bounds", tuple(guardrails))
