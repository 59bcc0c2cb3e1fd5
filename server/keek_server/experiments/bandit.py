"""An adaptive split: Thompson sampling over the arms of an experiment.

Each arm gets the share that equals the probability that it is the best one (Thompson, Biometrika 1933; in
this form Scott, "A modern Bayesian look at the multi-armed bandit", 2010), from draws of the arms'
posteriors. A floor keeps every arm measurable, and a bound on each step keeps one noisy look from moving
everybody.

Traffic that follows what was seen biases means that are taken over all of the time (Nie et al., AISTATS
2018): read the end of an adaptive experiment as a choice that was made, not as an effect that was measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from keek_server.errors import InvalidArgumentError
from keek_server.experiments.inference import Estimate
from keek_server.experiments.logs import FloatArray

_DRAWS: Final = 20_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds whatever is drawn."""

    floor: float = 0.05
    """The least share of an arm."""
    max_step: float = 0.10
    """The most that one arm's share changes at a time."""


def allocate_means(
    arms: Sequence[Estimate], weights: Sequence[float], limits: Limits | None = None, seed: int = 0
) -> tuple[float, ...]:
    """New weights from means by user: normal posteriors under a flat prior, N(value, variance).

    Of an arm without a variance nothing is known, as while nobody did anything: then the weights stay as they
    are.

    Args:
        arms: What was measured of each.
        weights: At present; they sum to 1.
        limits: The defaults without.
        seed: The same one gives the same weights.

    Returns:
        A weight for each arm; they sum to 1.

    Raises:
        InvalidArgumentError: When what is given does not fit together.
    """
    if len(arms) != len(weights):
        raise InvalidArgumentError.of("weights", "must be as many as arms")
    values, variances = (np.array([getattr(own, name) for own in arms]) for name in ("value", "variance"))
    if not (np.isfinite(variances) & (variances > 0.0)).all():
        return tuple(weights)
    draws = np.random.default_rng(seed).normal(values, np.sqrt(variances), (_DRAWS, len(arms)))
    best = np.bincount(draws.argmax(axis=1), minlength=len(arms)) / _DRAWS
    return _moved(np.asarray(weights, np.float64), best, limits or Limits())


def _moved(now: FloatArray, best: FloatArray, limits: Limits) -> tuple[float, ...]:
    """The weights on their way to `best`, how probable it is of each arm that it is the best one."""
    if not ((now >= 0.0).all() and abs(now.sum() - 1.0) < 1e-6):
        raise InvalidArgumentError.of("weights", "must not be negative and sum to 1")
    if not (0.0 <= limits.floor * len(now) <= 1.0 and 0.0 < limits.max_step <= 1.0):
        raise InvalidArgumentError.of("limits", "the floor must fit every arm, the step lie in (0, 1]")
    target = limits.floor + (1.0 - len(now) * limits.floor) * best
    # All arms go the same part of their way: the weights still sum to 1, and none falls below its floor.
    furthest = float(np.abs(target - now).max())
    part = min(1.0, limits.max_step / furthest) if furthest > 0.0 else 1.0
    return tuple((now + part * (target - now)).tolist())
