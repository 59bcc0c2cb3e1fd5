"""Logs as arrays, which feed caused an interaction, and sums by user."""

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from keek_server.errors import InvalidArgumentError
from keek_server.experiments.attribution import attribute
from keek_server.experiments.logs import Exposures, Interactions
from keek_server.experiments.measures import MEASURES, measured
from keek_server.experiments.totals import slot_rewards, user_totals
from keek_server.interactions.kinds import InteractionKind

VIEW, LIKE, SAVE, SKIP = (
    InteractionKind.VIEW,
    InteractionKind.LIKE,
    InteractionKind.SAVE,
    InteractionKind.SKIP,
)


def exposed(*feeds: tuple[int, int, int, list[int]]) -> Exposures:
    """Feeds of (user, arm, time, videos)."""
    videos = [video for *_, slate in feeds for video in slate]
    return Exposures(
        users=np.array([user for user, *_ in feeds], np.int64),
        arms=np.array([arm for _, arm, *_ in feeds], np.int16),
        times_us=np.array([time_us for _, _, time_us, _ in feeds], np.int64),
        offsets=np.cumsum([0] + [len(slate) for *_, slate in feeds]),
        firsts=np.zeros(len(feeds), np.int64),
        videos=np.array(videos, np.int64),
        sources=np.ones(len(videos), np.int8),
        scores=np.zeros(len(videos), np.float32),
        source_propensities=np.ones(len(videos), np.float32),
        video_propensities=np.ones(len(videos), np.float32),
    )


def interacted(*rows: tuple[int, int, int, int]) -> Interactions:
    """Rows of (user, video, kind, time)."""
    users, videos, kinds, times = np.array(rows, np.int64).reshape(-1, 4).T
    unknown = np.full(len(rows), np.nan)
    return Interactions(users, videos, kinds.astype(np.int8), times, unknown, unknown)


def watched(
    interactions: Interactions, seconds: list[float | None], durations: list[float | None]
) -> Interactions:
    """The same with how long the videos were watched, and are."""
    return replace(
        interactions,
        watched_s=np.array(seconds, np.float64),
        durations_s=np.array(durations, np.float64),
    )


def test_the_last_feed_that_showed_the_video_in_the_window_gets_the_interaction() -> None:
    exposures = exposed((7, 0, 100, [1, 2]), (7, 0, 200, [2, 3]), (8, 1, 150, [2]), (7, 0, 900, [9]))
    interactions = interacted(
        (7, 2, LIKE, 250),  # the second feed, not the first
        (7, 2, LIKE, 199),  # the first
        (7, 2, LIKE, 200),  # at the moment of the second
        (7, 1, LIKE, 201),  # one too late
        (7, 1, LIKE, 200),  # just in time
        (7, 3, LIKE, 199),  # before it was shown
        (8, 2, LIKE, 160),  # another user's
        (8, 1, LIKE, 160),  # never shown
        (9, 1, LIKE, 160),  # unknown user
    )
    found = attribute(exposures, interactions, window_us=100)
    assert found.feeds.tolist() == [1, 0, 1, -1, 0, -1, 2, -1, -1]
    assert found.positions.tolist() == [0, 1, 0, -1, 0, -1, 0, -1, -1]
    assert found.slots.tolist() == [2, 1, 2, -1, 0, -1, 4, -1, -1]


def test_attribution_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    feeds = [
        (int(rng.integers(6)), 0, int(rng.integers(1_000)), rng.integers(8, size=rng.integers(5)).tolist())
        for _ in range(150)
    ]
    rows = rng.integers((6, 8, 1, 0), (7, 9, 6, 1_200), size=(400, 4))
    rows[:, :2] = rng.integers((0, 0), (7, 9), size=(400, 2))
    exposures, interactions = exposed(*feeds), interacted(*(tuple(row) for row in rows.tolist()))
    found = attribute(exposures, interactions, 120)
    for (user, video, _, time_us), feed in zip(rows.tolist(), found.feeds.tolist(), strict=True):
        fitting = [
            (served, number)
            for number, (who, _, served, slate) in enumerate(feeds)
            if who == user and video in slate and served <= time_us <= served + 120
        ]
        assert feed == (max(fitting)[1] if fitting else -1)
    assert 50 < (found.feeds >= 0).sum() < 350


def test_nothing_shown_or_nothing_done_is_no_error() -> None:
    assert attribute(exposed(), interacted((1, 1, LIKE, 5)), 10).feeds.tolist() == [-1]
    assert len(attribute(exposed((1, 0, 1, [1])), interacted(), 10).slots) == 0
    totals = user_totals(exposed(), interacted(), start_us=0, window_us=10)
    assert len(totals.users) == 0
    with pytest.raises(InvalidArgumentError, match="window_us: must not be negative"):
        attribute(exposed(), interacted(), -1)


def test_a_million_rows_are_attributed_in_seconds() -> None:
    rng = np.random.default_rng(1)
    n = 50_000
    exposures = Exposures(
        users=rng.integers(20_000, size=n),
        arms=np.zeros(n, np.int16),
        times_us=rng.integers(10**9, size=n),
        offsets=np.arange(0, 10 * n + 1, 10),
        firsts=np.zeros(n, np.int64),
        videos=rng.integers(1_000, size=10 * n),
        sources=np.ones(10 * n, np.int8),
        scores=np.zeros(10 * n, np.float32),
        source_propensities=np.ones(10 * n, np.float32),
        video_propensities=np.ones(10 * n, np.float32),
    )
    interactions = Interactions(
        rng.integers(20_000, size=500_000),
        rng.integers(1_000, size=500_000),
        rng.integers(1, 6, size=500_000).astype(np.int8),
        rng.integers(10**9, size=500_000),
        np.full(500_000, np.nan),
        np.full(500_000, np.nan),
    )
    started = time.process_time()
    found = attribute(exposures, interactions, 10**9)
    # About half a second of one core; a loop would take many times more than this bound.
    assert time.process_time() - started < 5.0
    assert (found.feeds >= 0).any()


def test_sums_are_of_the_arm_seen_first_and_a_kind_counts_once_a_slot() -> None:
    exposures = exposed(
        (5, -1, 50, [1, 2, 3]),  # before the start
        (5, 1, 150, [1, 2]),
        (5, 0, 300, [4]),  # moved: left out
        (6, 0, 120, [1]),
        (6, 0, 130, [2, 3]),
        (9, -1, 150, [1]),  # not in the experiment
    )
    interactions = interacted(
        (5, 1, LIKE, 60),  # before
        (5, 9, SKIP, 70),  # before, by no feed
        (5, 1, LIKE, 160),
        (5, 1, LIKE, 161),  # again: counts once
        (5, 2, VIEW, 162),
        (5, 4, SAVE, 310),  # in the other arm
        (6, 3, SAVE, 140),
        (6, 2, SKIP, 141),
        (6, 8, LIKE, 141),  # by no feed
        (9, 1, LIKE, 160),
    )
    totals = user_totals(exposures, interactions, start_us=100, window_us=1_000)
    assert totals.users.tolist() == [5, 6]
    assert totals.arms.tolist() == [1, 0]
    assert totals.moved_count == 1
    now = {name: own.tolist() for name, own in totals.sums.items() if name != "watched_s"}
    assert np.isnan(totals.sums["watched_s"]).all()
    assert now == {
        "users": [1, 1],
        "feeds": [1, 2],
        "slots": [2, 3],
        "views": [1, 0],
        "likes": [1, 0],
        "saves": [0, 1],
        "shares": [0, 0],
        "skips": [0, 1],
        "answers": [1, 1],
        "north_star": [1.1, 2.0],
        "watchable_s": [0, 0],
    }
    before = {name: own.tolist() for name, own in totals.before.items()}
    assert (before["feeds"], before["slots"], before["likes"], before["skips"]) == (
        [1, 0],
        [3, 0],
        [1, 0],
        [1, 0],
    )


def test_seconds_are_those_of_the_longest_watch_of_each_slot_and_at_most_the_video() -> None:
    exposures = exposed(
        (5, -1, 50, [1, 2, 3]),  # before the start
        (5, 1, 150, [1, 2, 3, 4, 5]),
        (6, 0, 120, [1, 2]),
        (6, 1, 300, [7]),  # moved: left out
        (7, 2, 120, [1]),
    )
    rows: list[tuple[tuple[int, int, int, int], float | None, float | None]] = [
        ((5, 1, VIEW, 60), 4.0, 10.0),  # before
        ((5, 9, SKIP, 70), 30.0, 20.0),  # before, by no feed; looped
        ((5, 1, SKIP, 160), 3.0, 10.0),
        ((5, 1, VIEW, 170), 5.0, 10.0),  # came back to it: longer
        ((5, 2, VIEW, 160), 25.0, 20.0),  # looped: counts once
        ((5, 3, VIEW, 160), None, 20.0),
        ((5, 4, VIEW, 160), 7.0, None),
        ((5, 5, SKIP, 160), 0.0, 30.0),
        ((6, 1, LIKE, 130), None, 10.0),
        ((6, 2, VIEW, 130), 6.0, 8.0),
        ((6, 7, VIEW, 310), 1.0, 2.0),
        ((7, 1, VIEW, 130), None, 10.0),
    ]
    given, seconds, durations = zip(*rows, strict=True)
    interactions = watched(interacted(*given), list(seconds), list(durations))
    totals = user_totals(exposures, interactions, start_us=100, window_us=1_000)
    assert totals.users.tolist() == [5, 6, 7]
    assert totals.sums["watchable_s"].tolist() == [60.0, 8.0, 0.0]
    # Of the third arm nothing is known, which is not zero.
    np.testing.assert_array_equal(totals.sums["watched_s"], [25.0, 6.0, np.nan])
    assert totals.before["watched_s"].tolist() == [24.0, 0.0, 0.0]
    assert totals.before["watchable_s"].tolist() == [30.0, 0.0, 0.0]
    share, views = (measured(totals, own, 3) for own in MEASURES if own.name in ("watch_share", "view_share"))
    assert [own.value for own in share[:2]] == pytest.approx([6 / 8, 25 / 60])
    assert math.isnan(share[2].value)
    assert [own.value for own in views] == pytest.approx([1.0, 4 / 6, 1.0])
    (per_user,) = (own for own in MEASURES if own.name == "watch_seconds")
    assert [own.value for own in measured(totals, per_user, 2)] == [6.0, 25.0]
    assert math.isnan(measured(totals, per_user, 3)[2].value)
    with pytest.raises(InvalidArgumentError, match=r"interactions\.watched_s: must not be negative"):
        watched(interacted((5, 1, VIEW, 60)), [-1.0], [10.0])


def test_the_share_watched_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    feeds = [
        (
            int(rng.integers(6)),
            int(rng.integers(2)),
            int(rng.integers(1_000)),
            rng.permutation(9)[:4].tolist(),
        )
        for _ in range(60)
    ]
    rows = rng.integers((0, 0, 1, 0), (6, 9, 6, 1_200), size=(600, 4))
    durations = rng.uniform(1.0, 20.0, 9)[rows[:, 1]]
    seconds = np.where(rng.random(600) < 0.5, np.nan, rng.uniform(0.0, 30.0, 600))
    interactions = replace(
        interacted(*(tuple(row) for row in rows.tolist())), watched_s=seconds, durations_s=durations
    )
    exposures = exposed(*feeds)
    totals = user_totals(exposures, interactions, start_us=0, window_us=100)
    slots: dict[int, tuple[int, float, float]] = {}
    found = attribute(exposures, interactions, 100)
    for slot, feed, watched_s, duration_s in zip(found.slots, found.feeds, seconds, durations, strict=True):
        place = totals.users.tolist().index(exposures.users[feed])
        if slot >= 0 and not math.isnan(watched_s) and exposures.arms[feed] == totals.arms[place]:
            longest = max(slots.get(slot, (0, 0.0, 0.0))[1], min(watched_s, duration_s))
            slots[int(slot)] = (place, longest, duration_s)
    assert len(slots) > 30
    for place in range(len(totals.users)):
        own = [(seconds_, duration_s) for user, seconds_, duration_s in slots.values() if user == place]
        assert totals.sums["watched_s"][place] == pytest.approx(sum(one for one, _ in own))
        assert totals.sums["watchable_s"][place] == pytest.approx(sum(one for _, one in own))


def test_since_the_weights_changed_what_was_before_counts_neither_way() -> None:
    exposures = exposed((5, -1, 50, [1]), (5, 0, 150, [2]), (5, 1, 250, [3, 4]), (6, 1, 150, [5]))
    interactions = interacted((5, 1, LIKE, 60), (5, 2, LIKE, 160), (5, 3, LIKE, 260), (6, 5, LIKE, 300))
    totals = user_totals(exposures, interactions, start_us=100, since_us=200, window_us=1_000)
    assert (totals.users.tolist(), totals.arms.tolist(), totals.moved_count) == ([5], [1], 0)
    assert [totals.sums[name].tolist() for name in ("feeds", "slots", "likes")] == [[1], [2], [1]]
    assert [totals.before[name].tolist() for name in ("feeds", "slots", "likes")] == [[1], [1], [1]]


def test_a_slot_earns_the_weights_of_what_it_caused() -> None:
    exposures = exposed((5, 1, 150, [1, 2]), (6, 1, 150, [1]))
    interactions = interacted((5, 2, LIKE, 160), (5, 2, VIEW, 161), (5, 2, VIEW, 162), (6, 1, SKIP, 170))
    assert slot_rewards(exposures, interactions, 100).tolist() == [0.0, 1.1, 0.0]
    assert slot_rewards(exposures, interactions, 100, {SKIP: 3.0}).tolist() == [0.0, 0.0, 3.0]
    with pytest.raises(InvalidArgumentError, match="weights: must be finite and not negative"):
        user_totals(exposures, interactions, start_us=0, window_us=1, weights={LIKE: -1.0})


def test_some_feeds_keep_their_own_slots() -> None:
    exposures = exposed((5, 1, 150, [1, 2]), (6, 1, 150, []), (7, 0, 150, [3, 4, 5]), (8, 0, 1, [6]))
    kept = exposures.only(np.array([True, False, True, False]))
    assert (kept.users.tolist(), kept.offsets.tolist(), kept.videos.tolist()) == (
        [5, 7],
        [0, 2, 5],
        [1, 2, 3, 4, 5],
    )
    assert (kept.feeds.tolist(), kept.positions.tolist()) == ([0, 0, 1, 1, 1], [0, 1, 0, 1, 2])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": np.zeros(2, np.int16)}, "one length"),
        ({"scores": np.zeros((1, 2), np.float32)}, "one dimension"),
        ({"offsets": np.array([0, 1])}, "exposures.offsets"),
        ({"source_propensities": np.array([0.5, 0.0], np.float32)}, "exposures.source_propensities"),
        ({"video_propensities": np.array([0.5, 1.5], np.float32)}, "exposures.video_propensities"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    own = exposed((5, 1, 150, [1, 2]))
    arrays = {name: getattr(own, name) for name in Exposures.__dataclass_fields__}
    Exposures(**arrays | {"source_propensities": np.array([0.5, np.nan], np.float32)})
    with pytest.raises(InvalidArgumentError, match=message):
        Exposures(**arrays | changed)
    with pytest.raises(InvalidArgumentError, match=r"interactions\.kinds: must be kinds of interaction"):
        interacted((1, 1, 6, 5))
