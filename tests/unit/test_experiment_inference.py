"""Ratios by user, their differences, CUPED, sample ratios, and tests that may be looked at at any time."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from keek_server.errors import InvalidArgumentError
from keek_server.experiments.inference import (
    Difference,
    Estimate,
    compare,
    estimate,
    estimates,
    holm,
    linearised,
    sample_ratio,
)
from keek_server.experiments.logs import FloatArray
from keek_server.experiments.sequential import (
    always_valid_p,
    confidence_sequence,
    sequential_p,
    sequential_relative_interval,
)


def users(rng: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Likes and slots now and before, of users of whom some do much."""
    activity, taste = rng.lognormal(0.0, 1.0, count), rng.beta(2.0, 18.0, count)
    slots, slots_before = 1.0 + rng.poisson(20 * activity), rng.poisson(20 * activity).astype(float)
    return (
        rng.binomial(slots.astype(int), taste).astype(float),
        slots,
        rng.binomial(slots_before.astype(int), taste).astype(float),
        slots_before,
    )


def test_a_mean_by_user_is_compared_as_by_welchs_test() -> None:
    rng = np.random.default_rng(1)
    values = [rng.normal(1.0, 2.0, 900), rng.normal(1.1, 1.0, 700)]
    arms = np.repeat([0, 1], [900, 700]).astype(np.int16)
    control, treatment = estimates(arms, np.concatenate(values), np.ones(1600), 2)
    difference = compare(treatment, control)
    welch = stats.ttest_ind(values[1], values[0], equal_var=False)
    interval, own = welch.confidence_interval(0.95), difference.interval(0.05)
    assert difference.absolute == pytest.approx(values[1].mean() - values[0].mean())
    # Its normal limit: these are many users.
    assert difference.p_value == pytest.approx(welch.pvalue, rel=0.02)
    assert (own.low, own.high) == pytest.approx((interval.low, interval.high), rel=0.01)
    assert control.variance == pytest.approx(values[0].var(ddof=1) / 900)


def test_the_variance_of_a_ratio_is_that_of_a_bootstrap_over_users() -> None:
    rng = np.random.default_rng(2)
    likes, slots, *_ = users(rng, 2_000)
    own = estimate(likes, slots)
    assert own.value == likes.sum() / slots.sum()
    again = rng.integers(2_000, size=(2_000, 2_000))
    drawn = likes[again].sum(axis=1) / slots[again].sum(axis=1)
    assert math.sqrt(own.variance) == pytest.approx(drawn.std(), rel=0.06)
    # Slots of a user are alike: as many independent ones would seem to say much more.
    naive = own.value * (1 - own.value) / slots.sum()
    assert own.variance > 2 * naive


def test_the_interval_of_a_lift_is_that_of_a_bootstrap_over_users() -> None:
    rng = np.random.default_rng(3)
    groups = [users(rng, 1_500)[:2] for _ in range(2)]
    control, treatment = (estimate(*group) for group in groups)
    difference = compare(treatment, control)
    drawn = []
    for _ in range(2_000):
        # Users are drawn with both of their sums.
        picks = rng.integers(1_500, size=(2, 1_500))
        likes_slots = [[own[pick] for own in group] for group, pick in zip(groups, picks, strict=True)]
        values = [likes.sum() / slots.sum() for likes, slots in likes_slots]
        drawn.append(values[1] / values[0] - 1.0)
    interval = difference.relative_interval(0.05)
    assert difference.relative == pytest.approx(treatment.value / control.value - 1.0)
    assert (interval.low, interval.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.006)


@pytest.mark.parametrize("is_ratio", [False, True])
def test_cuped_narrows_intervals_and_leaves_the_expected_value(is_ratio: bool) -> None:
    rng = np.random.default_rng(4)
    plain_errors, errors, variances, plain_variances = [], [], [], []
    for _ in range(300):
        likes, slots, likes_before, slots_before = users(rng, 600)
        arms = rng.integers(2, size=600).astype(np.int16)
        denominators = slots if is_ratio else np.ones(600)
        before = linearised(likes_before, slots_before if is_ratio else np.ones(600))
        covariates = before[:, None]
        adjusted = compare(*estimates(arms, likes, denominators, 2, covariates)[::-1])
        plain = compare(*estimates(arms, likes, denominators, 2)[::-1])
        errors.append(adjusted.absolute)
        plain_errors.append(plain.absolute)
        variances.append(adjusted.variance)
        plain_variances.append(plain.variance)
    # No effect: the mean difference is 0, and it varies as much as is said, which is less than without.
    assert abs(np.mean(errors)) < 4 * np.std(errors) / math.sqrt(300)
    assert np.std(errors) == pytest.approx(math.sqrt(np.mean(variances)), rel=0.12)
    assert np.var(errors) < 0.8 * np.var(plain_errors)
    assert np.mean(variances) < 0.8 * np.mean(plain_variances)


def test_cuped_is_the_regression_on_what_was_before() -> None:
    rng = np.random.default_rng(5)
    before = rng.normal(size=400)
    arms = np.repeat([0, 1], 200).astype(np.int16)
    values = 3.0 * before + 0.5 * arms
    control, treatment = estimates(arms, values, np.ones(400), 2, before[:, None])
    assert treatment.value - control.value == pytest.approx(0.5)
    assert treatment.variance == pytest.approx(0.0, abs=1e-12)


def test_a_covariate_that_says_nothing_changes_nothing() -> None:
    rng = np.random.default_rng(6)
    arms, values = rng.integers(3, size=300).astype(np.int16), rng.normal(size=300)
    nothing = linearised(np.zeros(300), np.zeros(300))
    assert estimates(arms, values, np.ones(300), 3, nothing[:, None]) == estimates(
        arms, values, np.ones(300), 3
    )


def test_of_an_arm_without_users_nothing_is_said() -> None:
    arms, values = np.zeros(5, np.int16), np.arange(5.0)
    control, empty = estimates(arms, values, np.ones(5), 2, values[:, None])
    assert control.value == pytest.approx(2.0)
    difference = compare(empty, control)
    assert (empty.user_count, math.isnan(empty.value)) == (0, True)
    for said in (
        difference.p_value,
        difference.interval(0.05).low,
        sequential_p(difference),
        sequential_relative_interval(difference, 0.05).high,
    ):
        assert math.isnan(said)


def test_a_lift_over_nothing_is_unknown_and_its_difference_is_not() -> None:
    difference = compare(Estimate(0.1, 0.0004, 50), Estimate(0.0, 0.0, 50))
    assert difference.absolute == pytest.approx(0.1)
    assert math.isnan(difference.relative)
    assert math.isnan(sequential_p(difference))
    assert difference.p_value == pytest.approx(2 * stats.norm.sf(5.0))


def test_holms_p_values() -> None:
    # The example of R's p.adjust: 0.01 * 4, 0.02 * 3, 0.03 * 2, and never below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, math.nan, 0.6])[::2] == [1.0, 1.0]
    assert holm([]) == []


def test_a_broken_ratio_is_told_from_a_whole_one() -> None:
    assert sample_ratio([51_000, 49_000], [1, 1]).is_broken
    whole = sample_ratio([50_100, 49_900], [1, 1])
    assert not whole.is_broken
    assert whole.expected == (50_000, 50_000)
    assert whole.p_value == pytest.approx(stats.chisquare([50_100, 49_900]).pvalue)
    three = sample_ratio([480, 260, 260], [2, 1, 1])
    assert three.p_value == pytest.approx(stats.chisquare([480, 260, 260], [500, 250, 250]).pvalue)
    assert not sample_ratio([900, 100], [9, 1]).is_broken
    assert sample_ratio([900, 100], [0.5, 0.5]).is_broken
    assert not sample_ratio([0, 0], [1, 1]).is_broken
    # Testers alone see an arm without a weight.
    assert sample_ratio([500, 480, 7], [1, 1, 0]) == replace(
        sample_ratio([500, 480], [1, 1]), expected=(490.0, 490.0, 0.0)
    )
    for weights in ([1.0], [1.0, -1.0]):
        with pytest.raises(InvalidArgumentError, match="weights: must be one an arm, and not negative"):
            sample_ratio([1, 1], weights)


def test_the_confidence_sequence_leaves_out_what_the_p_value_rejects() -> None:
    for effect in np.linspace(0.0, 0.2, 60):
        interval = confidence_sequence(effect, 0.0009, 0.05, 0.05)
        assert (always_valid_p(effect, 0.0009, 0.05) < 0.05) == (interval.low > 0.0)
        assert interval.high - effect == pytest.approx(effect - interval.low)


def test_the_likelihood_ratio_is_the_mixture_that_it_claims_to_be() -> None:
    effect, variance, tau = 0.07, 0.0009, 0.05
    grid = np.linspace(-0.6, 0.6, 40_001)
    mixed = stats.norm.pdf(effect, grid, math.sqrt(variance)) * stats.norm.pdf(grid, 0.0, tau)
    ratio = np.trapezoid(mixed, grid) / stats.norm.pdf(effect, 0.0, math.sqrt(variance))
    assert ratio > 1.0
    assert always_valid_p(effect, variance, tau) == pytest.approx(1.0 / ratio, rel=1e-6)


def test_looking_at_every_step_of_a_walk_rarely_finds_what_is_not_there() -> None:
    rng = np.random.default_rng(7)
    steps = np.arange(10, 1_001)
    found = fixed = 0
    for _ in range(400):
        means = np.cumsum(rng.normal(size=1_000))[9:] / steps
        p_values = [always_valid_p(mean, 1.0 / n, 0.1) for mean, n in zip(means, steps, strict=True)]
        found += min(p_values) < 0.05
        fixed += bool((np.abs(means) * np.sqrt(steps) > 1.96).any())
    assert found <= 0.05 * 400 + 2 * math.sqrt(400 * 0.05 * 0.95)
    # While the test for one look is wrong more often than not.
    assert fixed > 0.3 * 400


def test_an_effect_is_found_in_time_and_within_the_sequence() -> None:
    difference = Difference(0.05, 0.0001, 0.05, 0.0001, 1.0)
    assert sequential_p(difference) < 0.001
    interval = sequential_relative_interval(difference, 0.05)
    once = difference.relative_interval(0.05)
    assert 0.0 < interval.low < once.low < 0.05 < once.high < interval.high
    for tau in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(InvalidArgumentError, match="tau: must be positive and finite"):
            always_valid_p(0.1, 0.1, tau)
