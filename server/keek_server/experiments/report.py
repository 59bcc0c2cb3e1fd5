"""All that is concluded from an experiment, as one object that can be written as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, Final

import numpy as np

from keek_server.clock import us_iso
from keek_server.errors import InvalidArgumentError
from keek_server.experiments.attribution import WINDOW_HOURS
from keek_server.experiments.guardrails import Bounds, FeedHealth, judge
from keek_server.experiments.inference import (
    Difference,
    Estimate,
    Interval,
    compare,
    holm,
    sample_ratio,
)
from keek_server.experiments.logs import Exposures, Interactions
from keek_server.experiments.measures import MEASURES, NORTH_STAR, Measure, measured
from keek_server.experiments.sequential import (
    TAU_RELATIVE,
    sequential_p,
    sequential_relative_interval,
)
from keek_server.experiments.totals import DEFAULT_WEIGHTS, UserTotals, user_totals
from keek_server.interactions.kinds import InteractionKind

Found = dict[str, Any]
"""One JSON object; what is not known is None."""

_CONTROL: Final = 0


@dataclass(frozen=True, slots=True)
class ReportArm:
    """An arm, by its number in the exposures; the first one is the control."""

    name: str
    weight: float
    stop_us: int | None = None
    """When a guardrail stopped it. What is compared with the control is the time before, of both."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked."""

    experiment_id: str
    arms: Sequence[ReportArm]
    start_us: int
    end_us: int
    """Until when there are feeds: now, or when it was stopped."""
    since_us: int | None = None
    """When weights changed last; see `user_totals`."""
    window_us: int = int(WINDOW_HOURS * 3.6e9)
    """How long after a feed it may have caused an interaction."""
    weights: Mapping[InteractionKind, float] = field(default_factory=lambda: DEFAULT_WEIGHTS)
    """Of kinds in the north star."""
    alpha: float = 0.05
    tau_relative: float = TAU_RELATIVE
    """See `sequential`."""
    looks: int = 10
    """Points of the time line."""


def build_report(
    question: Question,
    exposures: Exposures,
    interactions: Interactions,
    health: FeedHealth | None = None,
    bounds: Bounds | None = None,
) -> Found:
    """Everything that the data say.

    Args:
        question: What is asked.
        exposures: Of the experiment, and of its users before it, for CUPED; without testers.
        interactions: Of the same time.
        health: How the experiment's feeds went; without, there are no guardrails.
        bounds: The defaults without.

    Raises:
        InvalidArgumentError: When there are not two arms at least, or the data name others.
    """
    if len(question.arms) < 2:
        raise InvalidArgumentError.of("arms", "must be two at least, the control first")
    if len(exposures) and exposures.arms.max() >= len(question.arms):
        raise InvalidArgumentError.of("exposures.arms", "name arms that are not given")
    own = _Analysis(question, exposures, interactions)
    found: Found = _plain(
        {
            "experiment_id": question.experiment_id,
            "start_time": us_iso(question.start_us),
            "end_time": us_iso(question.end_us),
            "since_time": us_iso(own.since_us),
            "window_hours": question.window_us / 3.6e9,
            "alpha": question.alpha,
            "tau_relative": question.tau_relative,
            "weights": {kind.name.lower(): weight for kind, weight in question.weights.items()},
            **own.arms(),
            "measures": [own.measure(each) for each in MEASURES],
            "time_line": own.time_line(),
            "guardrails": [] if health is None else _guardrails(question, health, bounds),
        }
    )
    return found


class _Analysis:
    def __init__(self, question: Question, exposures: Exposures, interactions: Interactions) -> None:
        self._question = question
        self._exposures = exposures
        self._interactions = interactions
        self._made: dict[int, UserTotals] = {}
        self.since_us = max(question.start_us, question.since_us or 0)

    def totals(self, end_us: int) -> UserTotals:
        """Of feeds before `end_us`."""
        if end_us not in self._made:
            question = self._question
            self._made[end_us] = user_totals(
                self._exposures.only(self._exposures.times_us < end_us),
                self._interactions,
                start_us=question.start_us,
                since_us=question.since_us,
                window_us=question.window_us,
                weights=question.weights,
            )
        return self._made[end_us]

    def arms(self) -> Found:
        """Who came, and whether they are as many as should have."""
        question, whole = self._question, self.totals(self._question.end_us)
        ends = [self._end(arm) for arm in question.arms]
        # While all arms ran, but for those that had ended before what is compared begins.
        ran = [end > self.since_us for end in ends]
        counted = self.totals(min(compress(ends, ran), default=question.end_us))
        counts = np.bincount(counted.arms, minlength=len(ends)).tolist()
        weights = [arm.weight if own else 0.0 for arm, own in zip(question.arms, ran, strict=True)]
        ratio = sample_ratio(counts, weights)
        return {
            "arms": [
                {
                    "name": arm.name,
                    "weight": arm.weight,
                    "user_count": int((whole.arms == number).sum()),
                    "expected_user_count": ratio.expected[number],
                    **{
                        f"{name}_count": int(whole.sums[f"{name}s"][whole.arms == number].sum())
                        for name in ("feed", "slot")
                    },
                    "stop_time": None if arm.stop_us is None else us_iso(arm.stop_us),
                }
                for number, arm in enumerate(question.arms)
            ],
            "sample_ratio": {"p_value": ratio.p_value, "is_broken": ratio.is_broken, "user_counts": counts},
            "moved_user_count": whole.moved_count,
        }

    def measure(self, measure: Measure) -> Found:
        """One measure of all arms."""
        count, alpha = len(self._question.arms), self._question.alpha
        rows: list[Found] = []
        for number, arm in enumerate(self._question.arms):
            totals = self.totals(self._end(arm))
            both = measured(totals, measure, count)
            row = {"arm": arm.name, **_valued(both[number], alpha)}
            if number != _CONTROL:
                plain = measured(totals, measure, count, cuped=False)[number]
                row["variance_reduction"] = _share(plain.variance - both[number].variance, plain.variance)
                row["difference"] = self._difference(compare(both[number], both[_CONTROL]))
            rows.append(row)
        differences = [row["difference"] for row in rows if "difference" in row]
        for own, p_value in zip(differences, holm([own["p_value"] for own in differences]), strict=True):
            own["p_value_holm"] = p_value
        return {"name": measure.name, "title": measure.title, "arms": rows}

    def time_line(self) -> list[Found]:
        """The lift of the north star as it was at points in time."""
        question = self._question
        (north_star,) = (own for own in MEASURES if own.name == NORTH_STAR)
        points = np.linspace(self.since_us, question.end_us, question.looks + 1)[1:].astype(np.int64).tolist()
        line: list[Found] = []
        for number, arm in enumerate(question.arms):
            for point in points if number != _CONTROL else []:
                if point > self._end(arm):
                    break
                both = measured(self.totals(point), north_star, len(question.arms))
                found = compare(both[number], both[_CONTROL])
                interval = sequential_relative_interval(found, question.alpha, question.tau_relative)
                line.append(
                    {
                        "arm": arm.name,
                        "time": us_iso(point),
                        "relative": found.relative,
                        "relative_low": interval.low,
                        "relative_high": interval.high,
                    }
                )
        return line

    def _difference(self, own: Difference) -> Found:
        alpha, tau = self._question.alpha, self._question.tau_relative
        sequence = sequential_relative_interval(own, alpha, tau)
        p_value = sequential_p(own, tau)
        return {
            "absolute": own.absolute,
            **_ends("absolute", own.interval(alpha)),
            "relative": own.relative,
            **_ends("relative", own.relative_interval(alpha)),
            "p_value": own.p_value,
            **_ends("sequential_relative", sequence),
            "sequential_p_value": p_value,
            # Whatever number of looks was taken before.
            "is_significant": p_value < alpha,
        }

    def _end(self, arm: ReportArm) -> int:
        return self._question.end_us if arm.stop_us is None else min(arm.stop_us, self._question.end_us)


def _valued(own: Estimate, alpha: float) -> Found:
    return {"value": own.value, **_ends("value", own.interval(alpha)), "user_count": own.user_count}


def _ends(name: str, interval: Interval) -> Found:
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else math.nan


def _guardrails(question: Question, health: FeedHealth, bounds: Bounds | None) -> list[Found]:
    return [
        {
            "arm": question.arms[own.arm].name,
            "verdict": own.verdict.value,
            "reason": own.reason,
            "guardrails": [
                {
                    "name": each.name,
                    "control": each.control,
                    "value": each.value,
                    **_ends("difference", each.difference),
                    "bound": each.bound,
                    "is_relative": each.is_relative,
                    "verdict": each.verdict.value,
                    "reason": each.reason,
                }
                for each in own.guardrails
            ],
        }
        for own in judge(health, len(question.arms), bounds, _CONTROL)
    ]


def _plain(value: Any) -> Any:
    """Without NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {name: _plain(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_plain(own) for own in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
