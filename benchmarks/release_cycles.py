"""What cycles of publishing and rolling back did to feeds, in figures."""

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from benchmarks.feed_load import Tally
from benchmarks.feed_scores import TOLERANCE

_FEWEST: Final = 20
"""Of fewer pages no percentile is told."""

Window: TypeAlias = tuple[float, float]
"""From when to when, by time.perf_counter()."""


@dataclass(slots=True)
class Cycles:
    """What was done when; one entry a cycle, in order."""

    steady: list[Window] = field(default_factory=list)
    """The seconds before each cycle, in which nothing happened."""
    publishing: list[tuple[Window, Window]] = field(default_factory=list)
    """The command, before and after it embedded the corpus."""
    embedding: list[Window] = field(default_factory=list)
    rollbacks: list[Window] = field(default_factory=list)
    publish_ms: list[float] = field(default_factory=list)
    """From the start of the command until all servers answered from the new release."""
    rollback_ms: list[float] = field(default_factory=list)
    """From the call until all servers answered from the old release."""
    rollback_call_ms: list[float] = field(default_factory=list)
    """Until the call returned, which waits for what the servers say of themselves."""
    allowed: list[tuple[float, frozenset[str]]] = field(default_factory=list)
    """From when on which releases may answer."""

    def stale(self, tally: Tally) -> int:
        """Pages of a release that could not serve at any moment between question and answer."""
        starts = np.array([start for start, _ in self.allowed])
        count = 0
        for sample in tally.samples:
            first, last = np.searchsorted(starts, [sample.started, sample.ended], side="right") - 1
            allowed = itertools.chain(*(releases for _, releases in self.allowed[first : last + 1]))
            count += sample.release_id not in set(allowed)
        return count

    def figures(self, tally: Tally) -> dict[str, Any]:
        """For the report. Percentiles are of one round each, and medians over the rounds count."""
        steady = _p99s(tally, [[window] for window in self.steady])
        publishing = _p99s(tally, self.publishing)
        publish_ms, rollback_ms = _median(self.publish_ms), _median(self.rollback_ms)
        embedding = [ms for start, end in self.embedding for ms in tally.between(start, end)]
        return {
            "cycles": len(self.steady),
            "feeds": len(tally.samples),
            "errors": tally.errors,
            "mixed": tally.mixed,
            "p99_vs_steady": _ratio(_median(publishing), _median(steady), 3),
            "rollback_ms": rollback_ms,
            "publish_ms": publish_ms,
            "rollback_vs_publish": _ratio(rollback_ms, publish_ms, 4),
            "stale": self.stale(tally),
            "degraded": tally.degraded,
            "unpersonalised": tally.unpersonalised,
            "scores": tally.scores,
            "largest_difference": round(tally.largest_difference, 5),
            "tolerance": TOLERANCE,
            "p99_steady_ms": _median(steady),
            "p99_publishing_ms": _median(publishing),
            # One round's embedding is too short for a percentile of its own.
            "p99_embedding_ms": _p99(embedding),
            "p99_rollback_ms": _median(_p99s(tally, [[window] for window in self.rollbacks])),
            "embedding_ms": _median([(end - start) * 1e3 for start, end in self.embedding]),
            "publish_max_ms": max(self.publish_ms, default=None),
            "rollback_max_ms": max(self.rollback_ms, default=None),
            "rollback_call_ms": _median(self.rollback_call_ms),
        }


def _p99s(tally: Tally, rounds: Sequence[Sequence[Window]]) -> list[float]:
    """One of each round that had pages enough."""
    own = (_p99([ms for start, end in parts for ms in tally.between(start, end)]) for parts in rounds)
    return [p99 for p99 in own if p99 is not None]


def _p99(times_ms: Sequence[float]) -> float | None:
    return round(float(np.percentile(times_ms, 99)), 1) if len(times_ms) >= _FEWEST else None


def _median(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 1) if values else None


def _ratio(one: float | None, other: float | None, digits: int) -> float | None:
    return round(one / other, digits) if one is not None and other else None
