"""What another policy would have earned, against simulated users of whom the truth is known."""

import json
import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from benchmarks.simulated_users import Viewers

from keek_server.errors import FailedPreconditionError, InvalidArgumentError
from keek_server.experiments.logs import Exposures
from keek_server.experiments.offpolicy import Predictions, Replay, replay
from keek_server.experiments.replay_report import replay_found, replay_text
from keek_server.experiments.split_replay import Split, replay_split
from keek_server.feed.mixing import slots_of
from keek_server.feed.types import FeedSource

P, T = FeedSource.PERSONALISED, FeedSource.TRENDING


def values(own: Replay) -> list[float]:
    assert own.dr is not None
    return [each.estimate.value for each in (own.ips, own.snips, own.dr)]


def test_the_policy_that_was_logged_earned_what_it_earned() -> None:
    rng = np.random.default_rng(1)
    rewards, logged = rng.random(200), rng.uniform(0.1, 1.0, 200)
    own = replay(np.repeat(np.arange(20), 10), rewards, logged, logged)
    assert own.ips.estimate.value == own.snips.estimate.value == own.logged.value
    assert own.logged.value == pytest.approx(rewards.mean())
    assert (own.effective_slot_count, own.max_weight, own.mean_weight) == (200, 1.0, 1.0)
    assert own.ips.difference.variance == pytest.approx(0.0, abs=1e-15)
    assert (own.dr, own.left_out_share) == (None, 0.0)


def test_the_estimates_are_their_formulas() -> None:
    users = np.array([1, 1, 2, 3])
    rewards, logged = np.array([1.0, 0.0, 2.0, 5.0]), np.array([0.5, 0.25, 0.8, np.nan])
    target, model = np.array([1.0, 0.5, 0.2, 0.5]), Predictions(np.full(4, 0.9), np.full(4, 0.7))
    own = replay(users, rewards, logged, target, predictions=model)
    weights = np.array([2.0, 2.0, 0.25])
    assert own.ips.estimate.value == pytest.approx((2 + 0 + 0.5) / 3)
    assert own.snips.estimate.value == pytest.approx((2 + 0 + 0.5) / 4.25)
    dr = 0.9 + weights * (rewards[:3] - 0.7)
    assert values(own)[2] == pytest.approx(dr.mean())
    assert own.logged.value == pytest.approx(1.0)
    assert own.effective_slot_count == pytest.approx(4.25**2 / (weights**2).sum())
    assert (own.max_weight, own.slot_count, own.left_out_share) == (2.0, 3, 0.25)
    assert own.ips.difference.absolute == pytest.approx(2.5 / 3 - 1.0)
    assert own.ips.difference.relative == pytest.approx(2.5 / 3 - 1.0)


def test_doubly_robust_needs_the_propensities_or_the_model_to_be_right() -> None:
    rng = np.random.default_rng(2)
    m = 40_000
    chosen = rng.random(m) < 0.3
    rewards = np.where(chosen, 2.0, 1.0) + rng.normal(size=m)
    right, target = np.where(chosen, 0.3, 0.7), np.where(chosen, 0.9, 0.1)
    truth = 0.9 * 2.0 + 0.1 * 1.0
    good = Predictions(np.full(m, truth), np.where(chosen, 2.0, 1.0))
    bad = Predictions(np.full(m, 7.0), np.full(m, 7.0))
    users = np.arange(m)
    assert values(replay(users, rewards, right, target, predictions=bad))[2] == pytest.approx(truth, abs=0.15)
    wrong = replay(users, rewards, np.full(m, 0.5), target, predictions=good)
    assert values(wrong)[2] == pytest.approx(truth, abs=0.05)
    assert abs(values(wrong)[0] - truth) > 0.2
    both = replay(users, rewards, right, target, predictions=good)
    assert both.dr is not None
    assert both.dr.estimate.variance < 0.6 * both.ips.estimate.variance


def test_another_split_is_found_from_explored_feeds() -> None:
    rng = np.random.default_rng(3)
    viewers = Viewers.draw(rng, 1_500)
    truth = viewers.earned(Split(0.4))
    deep, shallow, covered, runs = [], [], 0, 12
    for _ in range(runs):
        exposures, rewards = viewers.log(rng, Split(0.3, 0.2))
        own = replay_split(exposures, rewards, Split(0.4), slots_of)
        deep.append(values(own))
        shallow.append(values(replay_split(exposures, rewards, Split(0.4), slots_of, by_depth=False)))
        assert own.mean_weight == pytest.approx(1.0, abs=0.1)
        assert own.left_out_share == 0.0
        interval = own.ips.lift_interval
        covered += interval.low < truth / rewards.mean() - 1.0 < interval.high
    for estimates in (deep, shallow):
        assert np.abs(np.mean(estimates, axis=0) / truth - 1.0).max() < 0.05
    # Without depths a source's later videos pass for its earlier ones; what is known of them costs variance.
    assert np.std(shallow, axis=0)[0] < np.std(deep, axis=0)[0]
    assert covered >= runs - 3


def tiny(sources: list[list[FeedSource]], quota: list[FeedSource], exploration: float) -> Exposures:
    """Feeds of the same slots, each of a user of its own."""
    flat = np.array(sources).reshape(-1)
    own = (1 - exploration) * (np.array(sources) == np.array(quota)) + exploration / 2
    n, m = len(sources), len(flat)
    propensities = own.reshape(-1).astype(np.float32)
    return Exposures(
        users=np.arange(n),
        arms=np.zeros(n, np.int16),
        times_us=np.arange(n),
        offsets=np.arange(0, m + 1, len(quota)),
        firsts=np.zeros(n, np.int64),
        videos=np.arange(m),
        sources=flat.astype(np.int8),
        scores=np.zeros(m, np.float32),
        source_propensities=propensities,
        video_propensities=np.ones(m, np.float32),
    )


def test_weights_are_exact_over_all_feeds_that_could_be_served() -> None:
    """Every possible feed once, earning its probability times what source, depth and place earn."""
    quota, length, exploration = list(slots_of(0.3, 0, 4)), 4, 0.3
    target = Split(0.6, 0.1)
    wanted = slots_of(0.6, 0, length)
    every = [list(feed) for feed in product((P, T), repeat=length)]

    def probability(feed: list[FeedSource], own: list[FeedSource], e: float) -> float:
        return math.prod((1 - e) * (s == q) + e / 2 for s, q in zip(feed, own, strict=True))

    def reward(feed: list[FeedSource], place: int) -> float:
        depth = feed[:place].count(feed[place])
        return (3.0 if feed[place] == T else 2.0) * 0.5**depth + 0.1 * place

    rewards = np.array([[reward(feed, place) for place in range(length)] for feed in every])
    of_log = np.array([probability(feed, quota, exploration) for feed in every])
    of_target = np.array([probability(feed, list(wanted), 0.1) for feed in every])
    truth = (of_target[:, None] * rewards).sum() / length
    # Mean over feeds as often as they are logged: a reward times the probability, over as many feeds.
    own = replay_split(
        tiny(every, quota, exploration),
        (of_log[:, None] * rewards).reshape(-1) * len(every),
        target,
        slots_of,
    )
    assert own.ips.estimate.value == pytest.approx(truth, rel=1e-5)
    naive = replay_split(
        tiny(every, quota, exploration),
        (of_log[:, None] * rewards).reshape(-1) * len(every),
        target,
        slots_of,
        by_depth=False,
    )
    assert abs(naive.ips.estimate.value / truth - 1.0) > 0.01


def test_slots_that_another_source_filled_and_feeds_without_exploration_are_left_out() -> None:
    quota = list(slots_of(0.3, 0, 4))
    explored = tiny([[P, P, P, T], [P, T, P, T], [T, P, P, P], [P, P, T, T]], quota, 0.2)
    rewards = np.arange(16.0)
    assert replay_split(explored, rewards, Split(0.5), slots_of).slot_count == 16
    sources, propensities = explored.sources.copy(), explored.source_propensities.copy()
    # A refilled slot, and one that popular videos filled.
    propensities[2] = np.nan
    sources[5] = FeedSource.POPULAR
    own = replay_split(
        replace(explored, sources=sources, source_propensities=propensities),
        rewards,
        Split(0.5),
        slots_of,
    )
    assert (own.slot_count, own.left_out_share) == (14, pytest.approx(2 / 16))
    # The last feed was served without.
    propensities = explored.source_propensities.copy()
    propensities[12:] = 1.0
    own = replay_split(replace(explored, source_propensities=propensities), rewards, Split(0.5), slots_of)
    assert own.slot_count == 12
    with pytest.raises(FailedPreconditionError, match="serve with some exploration first"):
        replay_split(
            replace(explored, source_propensities=np.ones(16, np.float32)), rewards, Split(0.5), slots_of
        )


def test_a_replay_is_told_as_json_and_as_a_table() -> None:
    rng = np.random.default_rng(4)
    exposures, rewards = Viewers.draw(rng, 200).log(rng, Split(0.3, 0.3))
    found = replay_found(replay_split(exposures, rewards, Split(0.4), slots_of))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [own["name"] for own in found["estimators"]] == ["ips", "snips", "dr"]
    first, header, ips, *_, last = replay_text(found, "mix 60/40").splitlines()
    assert first.startswith(f"mix 60/40, replayed from {len(rewards):,} slots (0.0% left out)")
    assert header.split() == ["BY", "A", "SLOT", "LOW", "HIGH", "LIFT", "LOW", "HIGH"]
    own = found["estimators"][0]
    assert own["low"] < own["value"] < own["high"]
    assert own["lift_low"] < own["lift"] < own["lift_high"]
    assert ips.split()[:2] == ["ips", f"{own['value']:.4g}"]
    assert "which should be 1" in last
    # Nobody earned anything: lifts are not known, and that is no NaN.
    nothing = replay_found(replay_split(exposures, np.zeros(len(rewards)), Split(0.4), slots_of))
    assert nothing["estimators"][0]["lift"] is None
    assert json.dumps(nothing, allow_nan=False)
    assert "ips  0" in replay_text(nothing, "mix")


def test_of_an_empty_log_nothing_can_be_replayed() -> None:
    explored = tiny([[P, P, P, T]], list(slots_of(0.3, 0, 4)), 0.2)
    nothing = explored.only(np.zeros(1, np.bool_))
    with pytest.raises(FailedPreconditionError, match="no slot of the log can be replayed"):
        replay_split(nothing, np.zeros(0), Split(0.5), slots_of)
    # A page that stayed empty is no slot.
    empty = replace(
        explored,
        users=np.arange(2),
        arms=np.zeros(2, np.int16),
        times_us=np.arange(2),
        firsts=np.zeros(2, np.int64),
        offsets=np.array([0, 4, 4]),
    )
    assert replay_split(empty, np.ones(4), Split(0.5), slots_of).slot_count == 4


def test_what_does_not_fit_is_refused() -> None:
    explored = tiny([[P, P, P, T]], list(slots_of(0.3, 0, 4)), 0.2)
    for split in (Split(1.1), Split(0.3, -0.1), Split(math.nan)):
        with pytest.raises(InvalidArgumentError, match=r"split\.\w+: must lie in \[0, 1\]"):
            replay_split(explored, np.zeros(4), split, slots_of)
    with pytest.raises(InvalidArgumentError, match="rewards: must be as many as slots"):
        replay_split(explored, np.zeros(3), Split(0.3), slots_of)
    with pytest.raises(InvalidArgumentError, match="target: must lie in"):
        replay(np.zeros(1, np.int64), np.ones(1), np.ones(1), np.array([1.5]))
