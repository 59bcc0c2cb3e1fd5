"""An adaptive split: Thompson sampling over the arms of an experiment.

Each arm gets the share that equals the probability that it is the best one (Thompson, Biometrika 1933; in
this form Scott, "A modern Bayesian look at the multi-armed bandit", 2010), from draws of the arms'
posteriors. A floor keeps every arm measurable, and a bound on each step keeps one noisy look from moving
everybody.

Traffic that follows what was seen biases means that are taken over all of the time (Nie et al., AISTATS
2018): read the end of an adaptive experiment as a choice that was made, not as an effect that was measured.
"""

import math
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


@dataclass(frozen=True, slots=True)
class Posterior:
    """What is believed of an arm's value."""

    mean: float
    deviation: float
    family: str
    """As `Beta(12, 90)`; for people."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """New weights, and why."""

    weights: tuple[float, ...]
    """Of each arm; they sum to 1."""
    best_probabilities: tuple[float, ...]
    """That the arm is the best one."""
    posteriors: tuple[Posterior, ...]


def allocate_rates(
    successes: Sequence[int],
    trials: Sequence[int],
    weights: Sequence[float],
    limits: Limits | None = None,
    seed: int = 0,
) -> Allocation:
    """New weights from independent trials, as users who did something at all. Prior: Beta(1, 1).

    Args:
        successes: Of each arm.
        trials: Of each arm.
        weights: At present; they sum to 1.
        limits: The defaults without.
        seed: The same one gives the same weights.

    Raises:
        InvalidArgumentError: When what is given does not fit together.
    """
    if not len(successes) == len(trials) == len(weights):
        raise InvalidArgumentError.of("weights", "must be as many as arms")
    if any(not 0 <= won <= tried for won, tried in zip(successes, trials, strict=True)):
        raise InvalidArgumentError.of("successes", "must lie between 0 and the trials")
    alphas = np.asarray(successes, np.float64) + 1.0
    betas = np.asarray(trials, np.float64) - np.asarray(successes, np.float64) + 1.0
    draws = np.random.default_rng(seed).beta(alphas, betas, (_DRAWS, len(alphas)))
    sums = alphas + betas
    deviations = np.sqrt(alphas * betas / (sums**2 * (sums + 1.0)))
    posteriors = [
        Posterior(float(a / (a + b)), float(deviation), f"Beta({a:g}, {b:g})")
        for a, b, deviation in zip(alphas, betas, deviations, strict=True)
    ]
    return _allocation(draws, posteriors, weights, limits or Limits())


def allocate_means(
    arms: Sequence[Estimate], weights: Sequence[float], limits: Limits | None = None, seed: int = 0
) -> Allocation:
    """New weights from means by user: normal posteriors under a flat prior, N(value, variance).

    Of an arm without a variance nothing is known, as while nobody did anything: then the weights stay as they
    are.

    Raises:
        InvalidArgumentError: As `allocate_rates`.
    """
    if len(arms) != len(weights):
        raise InvalidArgumentError.of("weights", "must be as many as arms")
    values, variances = (np.array([getattr(own, name) for own in arms]) for name in ("value", "variance"))
    posteriors = [
        Posterior(float(value), float(np.sqrt(variance)), f"N({value:.6g}, {np.sqrt(variance):.3g}^2)")
        for value, variance in zip(values, variances, strict=True)
    ]
    if not (np.isfinite(variances) & (variances > 0.0)).all():
        return Allocation(tuple(weights), (math.nan,) * len(arms), tuple(posteriors))
    draws = np.random.default_rng(seed).normal(values, np.sqrt(variances), (_DRAWS, len(arms)))
    return _allocation(draws, posteriors, weights, limits or Limits())


def _allocation(
    draws: FloatArray, posteriors: list[Posterior], weights: Sequence[float], limits: Limits
) -> Allocation:
    best = np.bincount(draws.argmax(axis=1), minlength=draws.shape[1]) / len(draws)
    now = np.asarray(weights, np.float64)
    if not ((now >= 0.0).all() and abs(now.sum() - 1.0) < 1e-6):
        raise InvalidArgumentError.of("weights", "must not be negative and sum to 1")
    if not (0.0 <= limits.floor * len(now) <= 1.0 and 0.0 < limits.max_step <= 1.0):
        raise InvalidArgumentError.of("limits", "the floor must fit every arm, the step lie in (0, 1]")
    target = limits.floor + (1.0 - len(now) * limits.floor) * best
    # All arms go the same part of their way: the weights still sum to 1, and none falls below its floor.
    furthest = float(np.abs(target - now).max())
    part = min(1.0, limits.max_step / furthest) if furthest > 0.0 else 1.0
    new = now + part * (target - now)
    return Allocation(tuple(new.tolist()), tuple(best.tolist()), tuple(posteriors))
