"""Another release, against what it would really have earned."""

import json
import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from benchmarks.simulated_releases import Near

from keek_server.errors import FailedPreconditionError, InvalidArgumentError
from keek_server.experiments.logs import Exposures, FloatArray, Pool, Pooled
from keek_server.experiments.release_replay import ReleaseReplay, replay_release
from keek_server.experiments.replay_report import release_found, release_text
from keek_server.feed.types import FeedSource

P, T = FeedSource.PERSONALISED, FeedSource.TRENDING


def pages(shown: list[list[int]], odds: list[list[float]]) -> Exposures:
    """Feeds of personalised videos, each of a user of its own."""
    n, length = len(shown), len(shown[0])
    return Exposures(
        users=np.arange(n),
        arms=np.zeros(n, np.int16),
        times_us=np.arange(n),
        offsets=np.arange(0, n * length + 1, length),
        firsts=np.zeros(n, np.int64),
        videos=np.array(shown).reshape(-1),
        sources=np.full(n * length, P, np.int8),
        scores=np.zeros(n * length, np.float32),
        source_propensities=np.ones(n * length, np.float32),
        video_propensities=np.array(odds, np.float32).reshape(-1),
    )


def pool_of(shown: list[int], proposed: list[int]) -> Pool:
    """Of a feed all of whose videos were drawn among all that was proposed."""
    last = len(shown) - 1
    return [
        Pooled(video, shown.index(video) if video in shown else last, is_shown=video in shown)
        for video in proposed
    ]


def every_page(
    proposed: list[int], length: int, exploration: float
) -> tuple[list[list[int]], list[list[float]]]:
    """All pages that could be served, and how likely each video was."""
    shown = [list(page) for page in permutations(proposed, length)]
    odds = []
    for page in shown:
        left, own = list(proposed), []
        for video in page:
            own.append((1 - exploration) * (video == left[0]) + exploration / len(left))
            left.remove(video)
        odds.append(own)
    return shown, odds


def replayed(
    proposed: list[int], choices: list[int], earns: dict[int, float], length: int, exploration: float
) -> ReleaseReplay:
    """Every page that could be served, each counted as often as it is."""
    shown, odds = every_page(proposed, length, exploration)
    often = np.array([math.prod(own) for own in odds])
    assert often.sum() == pytest.approx(1.0)
    rewards = np.array([[earns[video] for video in page] for page in shown])
    # Mean over feeds as often as they are logged: a reward times that, over as many feeds.
    weighted = (often[:, None] * rewards).reshape(-1) * len(shown)
    pools: list[Pool | None] = [pool_of(page, proposed) for page in shown]
    return replay_release(pages(shown, odds), weighted, pools, [choices] * len(shown))


EARNS = {0: 0.9, 1: 0.5, 2: 0.4, 3: 0.1, 4: 0.7, 5: 0.3}


@pytest.mark.parametrize("choices", [[0, 1, 2], [2, 1, 0, 5], [0, 4, 1, 2], [5, 4, 3, 2], [4, 5, 3]])
def test_over_all_pages_that_could_be_served_the_targets_videos_earn_what_they_earn(
    choices: list[int],
) -> None:
    truth = np.mean([EARNS[video] for video in choices[:3]])
    found = replayed(list(range(6)), choices, EARNS, 3, 1e-6)
    assert found.replay.ips.estimate.value == pytest.approx(truth, abs=1e-5)
    assert found.support == 1.0
    # The bias is of the order of the exploration.
    explored = replayed(list(range(6)), choices, EARNS, 3, 0.05)
    assert explored.replay.ips.estimate.value == pytest.approx(truth, rel=0.03)


def test_the_logged_release_is_its_own_target() -> None:
    found = replayed(list(range(6)), list(range(6)), EARNS, 3, 1e-6)
    assert (found.differing_share, found.support) == (0.0, 1.0)
    shown, odds = [[0, 1, 2], [0, 4, 1]], [[0.91, 0.91, 0.91], [0.91, 0.02, 0.91]]
    pools: list[Pool | None] = [pool_of(page, list(range(6))) for page in shown]
    own = replay_release(pages(shown, odds), np.ones(6), pools, [[0, 1, 2, 3]] * 2)
    # The slot that drew another than its best says nothing of the target, which shows its best.
    assert own.replay.mean_weight == pytest.approx(5 / 0.91 / 6, rel=1e-6)
    assert own.replay.slot_count == 6


def test_what_the_log_could_not_show_is_left_out_and_said() -> None:
    shown, odds = [[0, 1]] * 4, [[0.9, 0.9]] * 4
    pools: list[Pool | None] = [pool_of(page, [0, 1, 2]) for page in shown]
    # One choice is shared; of the others one could have been shown, and two could not.
    own = replay_release(pages(shown, odds), np.ones(8), pools, [[0, 2], [0, -1], [0, 77], [0, 1]])
    assert own.replay.slot_count == 6
    assert own.replay.left_out_share == pytest.approx(2 / 8)
    assert own.support == pytest.approx(6 / 8)
    assert own.differing_share == pytest.approx(3 / 8)
    assert own.feed_count == 4
    # Slots whose video was not drawn, and those of other sources.
    exposures = pages(shown, odds)
    exposures.sources[:2] = T
    own = replay_release(exposures, np.ones(8), [None, *pools[1:]], [None, None, [0, 1], [0, 1]])
    assert (own.replay.slot_count, own.feed_count) == (4, 2)
    assert own.replay.left_out_share == pytest.approx(2 / 6)


def test_a_video_that_was_dropped_is_nobodys_best() -> None:
    shown, odds = [[0, 2]], [[0.9, 0.9]]
    pool = [Pooled(0, 0, is_shown=True), Pooled(1, 0, is_shown=False), Pooled(2, 1, is_shown=True)]
    own = replay_release(pages(shown, odds), np.ones(2), [pool], [[0, 2]])
    assert own.differing_share == 0.0
    assert own.replay.ips.estimate.value == pytest.approx(1 / 0.9, rel=1e-6)


def test_a_better_release_is_found_from_feeds_with_some_video_exploration() -> None:
    rng = np.random.default_rng(5)
    near = Near.draw(rng, 1_200)
    truth = near.earned()
    found, runs, covered = [], 6, 0
    for _ in range(runs):
        exposures, rewards, pools, choices = near.log(rng, 0.1)
        own = replay_release(exposures, rewards, pools, choices)
        assert own.replay.mean_weight == pytest.approx(1.0, abs=0.15)
        assert own.support > 0.85
        assert own.replay.dr is not None
        found.append([each.estimate.value for each in (own.replay.ips, own.replay.snips, own.replay.dr)])
        interval = own.replay.ips.lift_interval
        covered += interval.low < truth / own.replay.logged.value - 1.0 < interval.high
    assert np.abs(np.mean(found, axis=0) / truth - 1.0).max() < 0.1
    assert covered >= runs - 2


def test_a_replay_of_a_release_is_told_as_json_and_as_text() -> None:
    rng = np.random.default_rng(6)
    exposures, rewards, pools, choices = Near.draw(rng, 100).log(rng, 0.3)
    own = replay_release(exposures, rewards, pools, choices)
    found = release_found(own, 0.0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {"estimators", "support", "differing_share", "effective_slot_count", "max_weight"} <= found.keys()
    text = release_text(found, "r2")
    assert text.startswith("release r2, replayed from ")
    assert f"{own.support:.1%} of what it would choose" in text
    assert "WARNING" not in text
    warned = release_text(release_found(replace(own, support=0.3), 0.25), "r2")
    assert "WARNING: these estimates are of the choices that the log could have shown" in warned
    assert "WARNING: 25.0% of these feeds are older than the release" in warned


def test_what_cannot_be_replayed_and_what_does_not_fit_is_refused() -> None:
    shown, odds = [[0, 1]], [[0.9, 0.9]]
    exposures, pool = pages(shown, odds), pool_of([0, 1], [0, 1, 2])
    rewards: FloatArray = np.ones(2)
    for pools, choices in (([None], [[0, 1]]), ([pool], [None])):
        with pytest.raises(FailedPreconditionError, match="serve with some video exploration first"):
            replay_release(exposures, rewards, pools, choices)
    with pytest.raises(FailedPreconditionError, match="could have shown nothing of what the release"):
        replay_release(exposures, rewards, [pool], [[-1, -1]])
    for wrong in ((np.ones(3), [pool], [[0, 1]]), (rewards, [], [[0, 1]]), (rewards, [pool], [])):
        with pytest.raises(InvalidArgumentError, match="must be"):
            replay_release(exposures, *wrong)
