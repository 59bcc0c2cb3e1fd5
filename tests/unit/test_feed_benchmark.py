"""The parts of the feed's benchmark that figures depend on."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from benchmarks.feed_users import USERS, asking_users, new_interactions, past_events
from benchmarks.ghz import outcome_of

RECORDED = Path(__file__).parents[1] / "data" / "ghz_list_feed_at_rate.json"


def test_users_ask_by_zipfs_law() -> None:
    counts = Counter(asking_users(200_000, seed=1))
    harmonic = float(np.sum(1 / np.arange(1, USERS + 1)))
    for rank in (0, 1, 9):
        assert counts[f"u{rank}"] / 200_000 == pytest.approx(1 / (rank + 1) / harmonic, rel=0.1)
    assert len(counts) > 10_000


def test_every_user_has_a_history_and_the_log_goes_by_time() -> None:
    events = past_events(1_000)
    assert set(events.users.tolist()) == set(range(USERS))
    assert np.all(np.diff(events.times_us) >= 0)
    assert 0 <= events.videos.min() <= events.videos.max() < 1_000


def test_interactions_are_with_known_videos_and_new_each_time() -> None:
    messages = [each["interaction"] for each in new_interactions(["a", "b", "c"], 500, seed=2)]
    assert {message["video_id"] for message in messages} == {"a", "b", "c"}
    assert {message["event_id"] for message in messages} == {"{{newUUID}}"}


def test_the_rate_is_that_of_answers_between_the_first_calls_start_and_the_last_ones_end() -> None:
    outcome = outcome_of(json.loads(RECORDED.read_text("utf-8")))
    assert outcome.count == 60
    assert outcome.errors == {"DeadlineExceeded": 10}
    assert len(outcome.latencies_ms) == 50
    assert outcome.percentile_ms(100) == pytest.approx(18.779316), "the slowest that was answered"
    # 60 calls, 40 a second, of which 50 were answered.
    assert outcome.rps == pytest.approx(50 / 1.475, rel=0.05)


def test_calls_that_ghz_skips_do_not_lower_the_rate() -> None:
    """As with --skipFirst, whose calls are in ghz's time and not in its count."""
    recorded = json.loads(RECORDED.read_text("utf-8"))
    recorded["details"] = recorded["details"][30:]
    recorded["rps"] /= 2
    good = sum(each["status"] == "OK" for each in recorded["details"])
    assert outcome_of(recorded).rps == pytest.approx(good / 0.725, rel=0.1)
