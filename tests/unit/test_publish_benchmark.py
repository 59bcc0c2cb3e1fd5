"""The eyes of `benchmarks.publish` and `benchmarks.bad_models`: what they must not overlook."""

import numpy as np
import pytest
from benchmarks.broken_models import BrokenModel
from benchmarks.feed_load import Sample, Tally
from benchmarks.feed_scores import TOLERANCE, ExpectedScores
from benchmarks.release_cycles import Cycles

import keek
from keek_server.towers.contract import DIMENSION

PERSONALISED = keek.FeedSource.FEED_SOURCE_PERSONALISED
RNG = np.random.default_rng(9)
USERS, VIDEOS = (RNG.normal(size=(count, DIMENSION)).astype(np.float32) for count in (5, 300))
SCORES = USERS @ VIDEOS.T


def expected() -> ExpectedScores:
    return ExpectedScores([f"u{i}" for i in range(5)], [f"v{i}" for i in range(300)], USERS, VIDEOS)


def item(video: int, score: float, source: keek.FeedSource.ValueType = PERSONALISED) -> keek.FeedItem:
    return keek.FeedItem(video_id=f"v{video}", source=source, score=score)


def test_right_scores_are_right_up_to_the_tolerance() -> None:
    items = [item(i, SCORES[2, i] + 0.9 * TOLERANCE) for i in range(10)]
    verdict = expected().judge("u2", items)
    assert (verdict.personalised, verdict.wrong) == (10, 0)
    assert 0.8 * TOLERANCE < verdict.largest_difference < TOLERANCE


@pytest.mark.parametrize(
    "wrong",
    [
        item(4, SCORES[2, 4] + 1.2 * TOLERANCE),
        item(4, SCORES[3, 4]),
        item(4, float("nan")),
        item(1000, 1.0),
    ],
)
def test_a_wrong_score_among_right_ones_is_seen(wrong: keek.FeedItem) -> None:
    verdict = expected().judge("u2", [item(1, SCORES[2, 1]), wrong, item(2, SCORES[2, 2])])
    assert (verdict.personalised, verdict.wrong) == (3, 1)


def test_scores_of_other_sources_are_not_compared() -> None:
    popular = item(4, 0.5, keek.FeedSource.FEED_SOURCE_POPULAR)
    assert expected().judge("u2", [popular]).personalised == 0


def test_hardly_a_score_of_a_mixed_feed_passes_for_right() -> None:
    assert expected().blind_share() < 0.02


def tally(*samples: tuple[float, float, str]) -> Tally:
    return Tally(samples=[Sample(*each) for each in samples])


def test_a_release_may_answer_while_it_serves_and_while_the_servers_turn() -> None:
    cycles = Cycles(
        allowed=[
            (0.0, frozenset("a")),
            (10.0, frozenset("ab")),
            (20.0, frozenset("b")),
            (30.0, frozenset("ab")),
            (31.0, frozenset("a")),
        ]
    )
    right = tally((1, 2, "a"), (9, 11, "b"), (12, 13, "a"), (19, 21, "a"), (22, 23, "b"), (29, 32, "a"))
    assert cycles.stale(right) == 0
    assert cycles.stale(tally((1, 2, "b"))) == 1
    assert cycles.stale(tally((20.5, 21, "a"), (32, 33, "b"), (33, 34, "a"))) == 2


def test_figures_are_medians_over_the_rounds() -> None:
    cycles = Cycles(
        steady=[(0, 10), (20, 30), (40, 50)],
        publishing=[((10, 14), (15, 20))],
        embedding=[(14, 15)],
        publish_ms=[8000.0],
        rollback_ms=[50.0],
    )
    steady = [
        (start + i / 10, start + i / 10 + 0.01 * (1 + start / 20), "a")
        for start in (0, 20, 40)
        for i in range(99)
    ]
    publishing = [(10 + i / 10, 10 + i / 10 + (0.5 if 40 <= i < 50 else 0.04), "a") for i in range(99)]
    figures = cycles.figures(tally(*steady, *publishing))
    assert figures["p99_steady_ms"] == 20.0
    assert figures["p99_publishing_ms"] == 40.0
    assert figures["p99_vs_steady"] == 2.0
    assert figures["rollback_vs_publish"] == pytest.approx(50 / 8000, abs=1e-4)
    assert figures["p99_embedding_ms"] is None


def test_a_refusal_is_right_when_it_gives_all_reasons_in_one_line() -> None:
    model = BrokenModel("some", lambda towers, folder: towers.write(folder), ("gate norms:", "user_tower"))
    assert model.is_refused_rightly("keek-train: refused by gate norms: value 2: user_tower is too long")
    assert not model.is_refused_rightly("keek-train: refused by gate norms: value 2: video_tower is too long")
    assert not model.is_refused_rightly("gate norms: value 2:\nuser_tower")
