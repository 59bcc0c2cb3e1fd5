"""Thompson sampling over arms, within its limits."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from keek_server.errors import InvalidArgumentError
from keek_server.experiments.bandit import Limits, allocate_means
from keek_server.experiments.inference import Estimate
from keek_server.experiments.measures import MEASURES, Measure, measured, per_slot
from keek_server.experiments.totals import UserTotals

FREE = Limits(floor=0.0, max_step=1.0)


def rates(won: Sequence[int], tried: Sequence[int]) -> list[Estimate]:
    """Of arms whose users did something or not: mean and variance of Beta(1 + won, 1 + lost)."""
    means = [(1 + own) / (2 + of) for own, of in zip(won, tried, strict=True)]
    return [Estimate(mean, mean * (1 - mean) / (3 + of), of) for mean, of in zip(means, tried, strict=True)]


def test_arms_get_the_probability_that_they_are_the_best() -> None:
    weights = allocate_means([Estimate(1.0, 0.04, 50), Estimate(1.3, 0.05, 50)], [0.5, 0.5], FREE)
    assert weights[1] == pytest.approx(stats.norm.cdf(0.3 / 0.3), abs=0.01)
    assert sum(weights) == pytest.approx(1.0)


def test_of_few_users_it_is_about_what_exact_posteriors_say() -> None:
    weights = allocate_means(rates([30, 40], [100, 100]), [0.5, 0.5], FREE)
    x = np.linspace(0.0, 1.0, 20_001)
    exact = np.trapezoid(stats.beta.pdf(x, 41, 61) * stats.beta.cdf(x, 31, 71), x)
    assert weights[1] == pytest.approx(exact, abs=0.01)


def test_a_seed_gives_the_same_weights_again() -> None:
    arms = rates([3, 4], [10, 10])
    first, again, other = (allocate_means(arms, [0.5, 0.5], FREE, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_arm_keeps_its_floor_and_no_step_is_longer_than_its_bound() -> None:
    limits, weights = Limits(floor=0.05, max_step=0.1), (0.25, 0.25, 0.25, 0.25)
    for _ in range(20):
        before = weights
        weights = allocate_means(rates([1, 5, 2, 90], [100] * 4), weights, limits)
        assert sum(weights) == pytest.approx(1.0)
        assert max(abs(new - old) for new, old in zip(weights, before, strict=True)) <= 0.1 + 1e-12
        assert min(weights) >= 0.05 - 1e-12
    assert weights == pytest.approx((0.05, 0.05, 0.05, 0.85), abs=1e-6)


def test_an_arm_below_its_floor_is_raised_step_by_step() -> None:
    arms, limits = rates([90, 1], [100, 100]), Limits(0.2, 0.1)
    first = allocate_means(arms, [1.0, 0.0], limits)
    assert first == pytest.approx((0.9, 0.1))
    assert allocate_means(arms, first, limits) == pytest.approx((0.8, 0.2))


def test_of_an_unknown_arm_nothing_is_concluded() -> None:
    for unknown in (Estimate(math.nan, math.nan, 0), Estimate(0.0, 0.0, 50)):
        own = allocate_means([Estimate(1.0, 0.1, 50), unknown], [0.97, 0.03])
        assert own == (0.97, 0.03)


def test_traffic_finds_the_better_arm() -> None:
    rng = np.random.default_rng(1)
    chances, weights = np.array([0.10, 0.13]), (0.5, 0.5)
    won, tried = np.zeros(2, int), np.zeros(2, int)
    for step in range(30):
        users = rng.multinomial(1_000, weights)
        won, tried = won + rng.binomial(users, chances), tried + users
        weights = allocate_means(rates(won.tolist(), tried.tolist()), weights, seed=step)
    assert weights == pytest.approx((0.05, 0.95), abs=0.02)
    assert tried[0] > 1_500


def adapted_weight(rng: np.random.Generator, measure: Measure, count: int = 2_000, steps: int = 20) -> float:
    """The second arm's weight after some steps among users whom it does not matter which arm they are in."""
    activity, taste, place = rng.lognormal(-1.2, 1.0, count), rng.beta(2.0, 18.0, count), rng.random(count)
    likes, slots, first, weights = np.zeros(count), np.zeros(count), np.full(count, -1), (0.5, 0.5)
    for step in range(steps):
        arms = (place >= weights[0]).astype(int)
        shown = 10 * rng.poisson(activity)
        first = np.where((first < 0) & (shown > 0), arms, first)
        # As `user_totals` does: what a user sees in another arm later is left out.
        stays = arms == first
        likes, slots = likes + stays * rng.binomial(shown, taste), slots + stays * shown
        seen = first >= 0
        sums = {"users": np.ones(seen.sum()), "likes": likes[seen], "slots": slots[seen]}
        before = {name: np.zeros(seen.sum()) for name in sums}
        totals = UserTotals(np.flatnonzero(seen), first[seen].astype(np.int16), sums, before, 0)
        weights = allocate_means(measured(totals, measure, 2), weights, seed=step)
    return weights[1]


def test_where_arms_are_alike_weights_by_slot_do_not_run_away() -> None:
    (likes,) = (measure for measure in MEASURES if measure.name == "likes")
    by_slot, by_user = (
        [adapted_weight(np.random.default_rng(seed), own) for seed in range(10)]
        for own in (per_slot(likes), likes)
    )
    assert sum(min(weight, 1 - weight) < 0.06 for weight in by_slot) <= 2
    # By user they do, since an arm that shrinks loses users who come back.
    assert sum(min(weight, 1 - weight) < 0.06 for weight in by_user) >= 8
    assert per_slot(likes).denominator == "slots"
    (watched,) = (measure for measure in MEASURES if measure.name == "watch_share")
    assert per_slot(watched) == watched
    (seconds,) = (measure for measure in MEASURES if measure.name == "watch_seconds")
    assert per_slot(seconds).denominator == "slots"


@pytest.mark.parametrize(
    ("weights", "limits", "message"),
    [
        ([1.0], FREE, "as many as arms"),
        ([0.5, 0.6], FREE, "sum to 1"),
        ([1.5, -0.5], FREE, "sum to 1"),
        ([0.5, 0.5], Limits(0.6, 0.1), "must fit every arm"),
        ([0.5, 0.5], Limits(0.1, 0.0), "the step lie in"),
    ],
)
def test_what_does_not_fit_is_refused(weights: list[float], limits: Limits, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        allocate_means(rates([1, 1], [2, 2]), weights, limits)
