"""What an experiment is judged by: ratios of the sums of `totals`."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from keek_server.experiments.inference import Estimate, estimates, linearised
from keek_server.experiments.logs import FloatArray
from keek_server.experiments.totals import UserTotals

_CUPED_USERS: Final = 100
"""With fewer, what predicts the sums of users is not known well enough to correct by."""


@dataclass(frozen=True, slots=True)
class Measure:
    """sum(numerator) / sum(denominator) over the users of an arm."""

    name: str
    """For programs."""
    title: str
    """For people."""
    numerator: str
    denominator: str
    """Names of sums."""


NORTH_STAR: Final = "north_star"

MEASURES: Final = (
    Measure(NORTH_STAR, "north star a user (weighted actions)", "north_star", "users"),
    Measure("likes", "likes a user", "likes", "users"),
    Measure("saves", "saves a user", "saves", "users"),
    Measure("shares", "shares a user", "shares", "users"),
    Measure("views", "views a user", "views", "users"),
    Measure("like_rate", "likes a video shown", "likes", "slots"),
    Measure("view_rate", "views a video shown", "views", "slots"),
    Measure("watch_share", "share watched of videos viewed or skipped", "watched_s", "watchable_s"),
    Measure("watch_seconds", "seconds watched a user", "watched_s", "users"),
    Measure("view_share", "views of all views and skips", "views", "answers"),
    Measure("feeds", "feeds a user", "feeds", "users"),
)


def measured(totals: UserTotals, measure: Measure, arm_count: int, *, cuped: bool = True) -> list[Estimate]:
    """The measure of each arm, by default with what the time before predicts taken out (CUPED)."""
    numerators, denominators = totals.sums[measure.numerator], totals.sums[measure.denominator]
    covariates = _before(totals, measure) if cuped and len(totals.users) >= _CUPED_USERS else None
    return estimates(totals.arms, numerators, denominators, arm_count, covariates)


def per_slot(measure: Measure) -> Measure:
    """The same by video shown, for weights that adapt.

    Where weights move, an arm that shrinks loses users who come back, and one that grows gets users of whom
    only a short time is known: sums by user then follow the weights, and the weights them, to the end.
    """
    return replace(measure, denominator="slots") if measure.denominator == "users" else measure


def _before(totals: UserTotals, measure: Measure) -> FloatArray:
    """float64 [u, 2]: the same measure before, and how much the user was there at all."""
    before = totals.before
    own = linearised(before[measure.numerator], before[measure.denominator])
    return np.stack([own, before["slots"]], axis=1)
