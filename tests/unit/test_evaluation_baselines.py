"""One contract for all baselines, each beside its formula on small data, and their tuning."""

import numpy as np
import pytest
from evaluating import dataset_of, targets_of

from keek_server.interactions.kinds import InteractionKind
from keek_training.evaluation.baselines import BASELINES
from keek_training.evaluation.baselines.ease import Ease, EaseRecency
from keek_training.evaluation.baselines.itemknn import ItemKnn
from keek_training.evaluation.baselines.markov import Markov
from keek_training.evaluation.baselines.popular import Popular
from keek_training.evaluation.baselines.protocol import Baseline, Training
from keek_training.evaluation.baselines.trending import Trending
from keek_training.evaluation.cases import Cases, cases_of
from keek_training.evaluation.histories import Histories
from keek_training.evaluation.metrics import per_user
from keek_training.evaluation.ranking import rank
from keek_training.evaluation.tuning import tune
from keek_training.features import Float32Array

View, Like, Skip = (InteractionKind[name] for name in ("VIEW", "LIKE", "SKIP"))
_SIDE = 12
_FOR_ALL = {"popular", "trending"}
_VIDEOS = [f"v{place:02}" for place in range(2 * _SIDE)]


def _training(users: list[list[int]], videos: int, times_us: list[int] | None = None) -> Training:
    rows = [video for own in users for video in own]
    offsets = np.cumsum([0, *map(len, users)])
    times = np.arange(len(rows)) * 3_600_000_000 if times_us is None else np.array(times_us)
    kinds = np.full(len(rows), int(Like), np.int32)
    return Training(Histories(offsets, np.array(rows, np.int32), kinds, times, videos))


def _clubs() -> tuple[Training, Cases]:
    """Users of two halves of the videos, who go round in their half, each from another video on; the target
    is the next one."""
    events, pairs = [], []
    for user in range(96):
        half = _VIDEOS[:_SIDE] if user % 2 else _VIDEOS[_SIDE:]
        round_ = [half[(user // 2 + place) % _SIDE] for place in range(6)]
        events += [(f"u{user:02}", video, Like) for video in round_[:5]]
        pairs.append((f"u{user:02}", round_[5]))
    cases = cases_of(dataset_of(events, _VIDEOS), targets_of(pairs))
    return Training(Histories.of(cases.known, len(_VIDEOS))), cases


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda own: own.name)
def test_every_baseline_scores_all_videos_for_anyone(baseline: Baseline) -> None:
    training, cases = _clubs()
    score = baseline.fit(training, baseline.grid[0])
    nobody = training.histories.take(np.array([-1, 0]))
    scores = score(nobody)
    assert scores.shape == (2, len(_VIDEOS))
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    again = baseline.fit(Training(training.histories), baseline.grid[0])
    assert again(cases.liked) == pytest.approx(score(cases.liked))


@pytest.mark.parametrize(
    "baseline", [own for own in BASELINES if own.name not in _FOR_ALL], ids=lambda own: own.name
)
def test_what_goes_by_a_users_own_history_finds_the_users_half(baseline: Baseline) -> None:
    training, cases = _clubs()
    (tuned,) = tune([baseline], training, cases, seed=1)
    ranked = rank(cases, baseline.fit(training, tuned.parameters))
    own = cases.liked.videos[cases.liked.offsets[:-1]] // _SIDE
    assert (ranked[:, 0] // _SIDE == own).all()
    popular = rank(cases, Popular().fit(training, {}))
    found, least = (per_user(each, cases.targets).values["ndcg@10"].mean() for each in (ranked, popular))
    assert found > 1.5 * least


def test_popular_counts_users() -> None:
    training = _training([[0, 1], [1], [1, 2]], 4)
    assert Popular().fit(training, {})(training.histories).tolist() == [[1, 3, 1, 0]] * 3


def test_trending_halves_with_age() -> None:
    hour_us = 3_600_000_000
    training = _training([[0], [1], [1]], 3, [10 * hour_us, 0, 5 * hour_us])
    (scores,) = Trending().fit(training, {"half_life_h": 5.0})(training.histories.take(np.array([0])))
    assert scores == pytest.approx([1, 1 / 4 + 1 / 2, 0])


def test_item_knn_is_the_shrunk_cosine_of_the_nearest() -> None:
    users = [[0, 1], [0, 1], [0, 2], [3]]
    training = _training(users, 4)
    (scores,) = ItemKnn().fit(training, {"neighbours": 1000, "shrink": 2, "user_power": 0})(_one([0]))
    assert scores == pytest.approx([0, 2 / (np.sqrt(3 * 2) + 2), 1 / (np.sqrt(3) + 2), 0])
    # Of the two neighbours of video 0 the nearer alone is asked for it, of video 2 there is but one.
    (scores,) = ItemKnn().fit(training, {"neighbours": 1, "shrink": 2, "user_power": 0})(_one([2]))
    assert scores == pytest.approx([0, 0, 0, 0])
    (scores,) = ItemKnn().fit(training, {"neighbours": 1, "shrink": 2, "user_power": 0})(_one([0]))
    assert scores == pytest.approx([0, 2 / (np.sqrt(3 * 2) + 2), 1 / (np.sqrt(3) + 2), 0])


def test_item_knn_may_count_users_of_many_videos_less() -> None:
    training = _training([[0, 1], [0, 1, 2, 3]], 4)
    score = ItemKnn().fit(training, {"neighbours": 1000, "shrink": 0, "user_power": 1})
    assert score(_one([0]))[0] == pytest.approx(
        [0, 1, 1 / 4 / np.sqrt(3 / 4 * 1 / 4), 1 / 4 / np.sqrt(3 / 16)]
    )


def test_ease_is_the_closed_form() -> None:
    rng = np.random.default_rng(2)
    users = [sorted(rng.permutation(8)[:3].tolist()) for _ in range(40)]
    training = _training(users, 8)
    matrix = training.histories.matrix().toarray().astype(np.float64)
    inverse = np.linalg.inv(matrix.T @ matrix + 100 * np.eye(8))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    assert Ease().fit(training, {"l2": 100})(training.histories) == pytest.approx(matrix @ weights, abs=1e-5)
    (scores,) = EaseRecency().fit(training, {"l2": 100, "half_life_videos": 1})(_one([5, 6]))
    assert scores == pytest.approx(0.5 * weights[5] + weights[6], abs=1e-5)


def test_markov_counts_what_follows_by_distance() -> None:
    training = _training([[0, 1, 2], [0, 2], [3, 0]], 4)
    score = Markov().fit(training, {"window": 2, "power": 1})
    # After 0: 1 once, 2 once at a distance of two (counting half) and once at one.
    assert score(_one([0]))[0] == pytest.approx([0, 1 / 2.5, 1.5 / 2.5, 0])
    # 3 before 0 has half a say: after it came 0.
    assert score(_one([3, 0]))[0] == pytest.approx([0.5, 1 / 2.5, 1.5 / 2.5, 0])
    assert score(_one([2]))[0].tolist() == [0, 0, 0, 0]


def test_tuning_takes_the_best_of_the_grid() -> None:
    class Fixed:
        name = "fixed"
        grid = ({"sign": -1.0}, {"sign": 1.0}, {"sign": 0.0})
        most_videos = None

        def fit(self, training: Training, parameters: dict[str, float]) -> object:
            def score(histories: Histories) -> Float32Array:
                nearest = training.histories.matrix().T @ training.histories.matrix()
                return parameters["sign"] * np.asarray((histories.matrix() @ nearest).todense(), np.float32)

            return score

    training, cases = _clubs()
    (tuned,) = tune([Fixed()], training, cases, seed=1)  # type: ignore[list-item]
    assert tuned.parameters == {"sign": 1.0}
    ranked = rank(cases, Fixed().fit(training, {"sign": 1.0}))  # type: ignore[arg-type]
    assert tuned.ndcg_at_10 == pytest.approx(per_user(ranked, cases.targets).values["ndcg@10"].mean())


def test_a_skip_is_nothing_to_learn_from() -> None:
    dataset = dataset_of([("u", "a", Like), ("u", "b", Skip), ("w", "b", Skip)], "abc")
    cases = cases_of(dataset, targets_of([("w", "c"), ("u", "c")]))
    assert cases.liked.lengths.tolist() == [0, 1]
    assert cases.seen.lengths.tolist() == [1, 2]


def _one(videos: list[int]) -> Histories:
    return _training([videos], 8 if max(videos) > 3 else 4).histories
