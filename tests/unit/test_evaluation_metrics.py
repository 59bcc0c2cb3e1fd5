"""Metrics beside trec_eval on random rankings, and cases whose values are known by hand."""

import math

import numpy as np
import pytest
import pytrec_eval
from evaluating import dataset_of, targets_of

from keek_server.interactions.kinds import InteractionKind
from keek_training.evaluation.bootstrap import intervals
from keek_training.evaluation.cases import Counted, cases_of
from keek_training.evaluation.metrics import (
    KS,
    coverage,
    hits,
    per_user,
    popularity_lift,
    recall_curve,
)
from keek_training.evaluation.ranking import DEPTH, Ranked

_VIDEOS = 300
_USERS = 80


def _ranked(rows: list[list[int]]) -> Ranked:
    padded = np.full((len(rows), DEPTH), -1, np.int32)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return padded


@pytest.fixture(scope="module")
def rankings() -> Ranked:
    rng = np.random.default_rng(3)
    return np.array([rng.permutation(_VIDEOS)[:DEPTH] for _ in range(_USERS)], np.int32)


@pytest.fixture(scope="module")
def targets() -> Counted:
    rng = np.random.default_rng(4)
    pairs = [(case, video) for case in range(_USERS) for video in rng.permutation(_VIDEOS)[: 1 + case % 30]]
    cases, videos = np.array(pairs, np.int64).T
    return Counted(cases, videos.astype(np.int32))


def test_all_metrics_are_those_of_trec_eval(rankings: Ranked, targets: Counted) -> None:
    relevant: dict[str, dict[str, int]] = {}
    for case, video in zip(targets.cases.tolist(), targets.videos.tolist(), strict=True):
        relevant.setdefault(str(case), {})[str(video)] = 1
    run = {
        str(case): {str(video): float(-place) for place, video in enumerate(row.tolist())}
        for case, row in enumerate(rankings)
    }
    at = ",".join(map(str, KS))
    evaluator = pytrec_eval.RelevanceEvaluator(relevant, {f"recall.{at}", f"ndcg_cut.{at}", "recip_rank"})
    expected = evaluator.evaluate(run)
    found = per_user(rankings, targets)
    assert found.cases.tolist() == list(range(_USERS))
    for k in KS:
        for own, other in ((f"recall@{k}", f"recall_{k}"), (f"ndcg@{k}", f"ndcg_cut_{k}")):
            assert found.values[own] == pytest.approx(
                np.array([expected[str(case)][other] for case in range(_USERS)]), abs=1e-9
            )
    assert found.values["mrr"] == pytest.approx(
        np.array([expected[str(case)]["recip_rank"] for case in range(_USERS)]), abs=1e-9
    )


def test_one_target_in_third_place() -> None:
    found = per_user(_ranked([[4, 2, 7, 1]]), Counted(np.array([0]), np.array([7], np.int32)))
    assert found.values["recall@10"] == [1]
    assert found.values["ndcg@10"] == [pytest.approx(1 / math.log2(4))]
    assert found.values["mrr"] == [pytest.approx(1 / 3)]


def test_recall_is_over_all_targets_and_what_the_catalogue_lacks_is_missed() -> None:
    targets = Counted(np.array([0, 0, 0, 0]), np.array([1, 2, -1, -1], np.int32))
    found = per_user(_ranked([[1, 2]]), targets)
    assert found.values["recall@10"] == [0.5]
    ideal = 1 + 1 / math.log2(3) + 1 / math.log2(4) + 1 / math.log2(5)
    assert found.values["ndcg@10"] == [pytest.approx((1 + 1 / math.log2(3)) / ideal)]


def test_empty_places_of_a_short_ranking_hit_nothing() -> None:
    targets = Counted(np.array([0]), np.array([-1], np.int32))
    assert not hits(_ranked([[1]]), targets).any()


def test_users_without_a_target_of_the_kind_are_left_out() -> None:
    targets = Counted(np.array([1]), np.array([5], np.int32))
    found = per_user(_ranked([[5], [5], [5]]), targets)
    assert found.cases.tolist() == [1]
    assert found.values["recall@10"].tolist() == [1]


def test_a_case_does_not_hit_the_targets_of_another() -> None:
    targets = Counted(np.array([0, 1]), np.array([3, 4], np.int32))
    assert per_user(_ranked([[4], [3]]), targets).values["recall@10"].tolist() == [0, 0]


def test_the_curve_ends_at_recall_of_the_whole_depth(rankings: Ranked, targets: Counted) -> None:
    curve = recall_curve(rankings, targets)
    assert (np.diff(curve) >= 0).all()
    for k in KS:
        assert curve[k - 1] == pytest.approx(per_user(rankings, targets).values[f"recall@{k}"].mean())


def test_coverage_counts_every_video_once() -> None:
    assert coverage(_ranked([[1, 2], [2, 3], []]), 10, 6) == 0.5
    assert coverage(_ranked([[1, 2], [2, 3], []]), 1, 6) == pytest.approx(2 / 6)


def test_popularity_lift_is_the_ratio_of_mean_counts() -> None:
    like = InteractionKind.LIKE
    events = [(f"u{i}", "a", like) for i in range(6)] + [("u0", "b", like), ("u1", "b", like)]
    cases = cases_of(dataset_of(events, ["a", "b", "c"]), targets_of([("new", "b")]))
    assert cases.training_counts.tolist() == [6, 2, 0]
    assert popularity_lift(_ranked([[0]]), 10, cases) == pytest.approx(6 / 2 - 1)
    assert popularity_lift(_ranked([[1, 2]]), 10, cases) == pytest.approx(1 / 2 - 1)


def test_intervals_are_about_those_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(5, 2, size=(400, 2))
    low, high = intervals(values)
    error = values.std(axis=0) / 20
    assert low == pytest.approx(values.mean(axis=0) - 1.96 * error, abs=0.3 * error.max())
    assert high == pytest.approx(values.mean(axis=0) + 1.96 * error, abs=0.3 * error.max())
    assert (intervals(values) == intervals(values)).all()
    assert (intervals(values) != intervals(values, seed=1)).any()


def test_the_interval_of_a_constant_is_a_point() -> None:
    assert intervals(np.full((10, 1), 0.25)).tolist() == [[0.25], [0.25]]
