"""Quality, spread and overlap, against brute force; and how sure a refusal is."""

import numpy as np
import pytest

from keek_server.interactions.history import HistoryEntry
from keek_server.interactions.kinds import InteractionKind
from keek_server.releases.release import Corpus
from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.fresh import VECTORS
from keek_server.settings import Settings
from keek_training.gates.measured import Measured
from keek_training.gates.quality import Ratio, feeds, k_of, known_requests, overlaps, ranks
from keek_training.gates.requests import Request, request_of
from keek_training.gates.vectors import Moments, difference, vector_gates
from keek_training.gates.verdict import failures

RNG = np.random.default_rng(11)
VIEW, LIKE, SKIP = InteractionKind.VIEW, InteractionKind.LIKE, InteractionKind.SKIP
VIDEOS = 70_000
"""More than one chunk."""


def history(*entries: tuple[str, InteractionKind]) -> list[HistoryEntry]:
    return [HistoryEntry(video, kind, 1000 * place) for place, (video, kind) in enumerate(entries)]


def corpus_of(vectors: np.ndarray) -> Corpus:
    ids = [f"v{i}" for i in range(len(vectors))]
    return Corpus.build(ids, {VECTORS: vectors}, np.zeros(len(vectors), np.int64))


def test_the_held_out_video_is_the_last_that_was_new_and_liked() -> None:
    done = history(("a", VIEW), ("b", SKIP), ("c", VIEW), ("c", LIKE), ("d", SKIP), ("a", LIKE))
    request = request_of("u", done)
    assert request is not None
    assert request.target == "c"
    assert [entry.video_id for entry in request.history] == ["a", "b"]
    assert request.now_us == 2000


@pytest.mark.parametrize(
    "done",
    [
        history(),
        history(("a", LIKE)),
        history(("a", VIEW), ("a", LIKE), ("a", VIEW)),
        history(("a", VIEW), ("b", SKIP), ("b", LIKE)),
    ],
)
def test_users_who_took_to_nothing_new_are_left_out(done: list[HistoryEntry]) -> None:
    assert request_of("u", done) is None


def test_ranks_are_those_of_brute_force() -> None:
    vectors = RNG.normal(size=(VIDEOS, 64)).astype(np.float32)
    corpus = corpus_of(vectors)
    users = RNG.normal(size=(20, 64)).astype(np.float32)
    requests = []
    for row in RNG.integers(0, VIDEOS, 20).tolist():
        seen = [f"v{i}" for i in RNG.integers(0, VIDEOS, 30).tolist() if i != row] + ["not there", "v1", "v1"]
        requests.append(Request("u", tuple(history(*((id_, VIEW) for id_ in seen))), f"v{row}", 0))
    found = ranks(corpus, users, requests)
    for user, request, rank in zip(users, requests, found, strict=True):
        scores = vectors.astype(np.float64) @ user.astype(np.float64)
        own = scores[int(request.target[1:])]
        seen_rows = {int(e.video_id[1:]) for e in request.history if e.video_id.startswith("v")}
        ahead = {int(row) for row in np.flatnonzero(scores > own)} - seen_rows
        # Scores that are equal but for rounding count as ahead.
        assert len(ahead) <= rank <= len(ahead) + 2


def test_vectors_that_are_all_the_same_or_no_numbers_rank_last() -> None:
    same = corpus_of(np.ones((500, 64), np.float32))
    requests = [Request("u", tuple(history(("v1", VIEW))), "v0", 0)] * 2
    users = np.ones((2, 64), np.float32)
    users[1] = np.nan
    with np.errstate(invalid="ignore"):
        assert ranks(same, users, requests).tolist() == [498, 500]


def test_only_what_all_releases_know_is_compared() -> None:
    small = Measured(1, 1, 2, corpus_of(np.ones((2, 64), np.float32)), None, None)  # type: ignore[arg-type]
    large = Measured(1, 1, 2, corpus_of(np.ones((9, 64), np.float32)), None, None)  # type: ignore[arg-type]
    known = Request("u", tuple(history(("v0", VIEW))), "v1", 0)
    new_target = Request("u", tuple(history(("v0", VIEW))), "v7", 0)
    # The one entry that the small release knows lies beyond what its tower reads.
    new_history = Request("u", tuple(history(("v0", VIEW), ("v6", VIEW), ("v7", VIEW))), "v1", 0)
    assert known_requests([known, new_target, new_history], [large]) == [known, new_target, new_history]
    assert known_requests([known, new_target, new_history], [large, small]) == [known]


def test_feeds_leave_out_what_was_seen_and_overlaps_are_shares_of_the_live_one() -> None:
    vectors = np.zeros((30, 64), np.float32)
    vectors[:, 0] = np.arange(30, 0, -1)
    corpus = corpus_of(vectors)
    index, report = build_index(vectors, vectors[:5], IndexOptions(exact_below=100, recall_target=0.9))
    release = Measured(1, 1, 5, corpus, index, report)
    request = Request("u", tuple(history(("v0", VIEW), ("v2", VIEW), ("gone", VIEW))), "v1", 0)
    found = feeds(release, vectors[:1], [request], 3)
    assert found == [["v1", "v3", "v4"]]
    shares = overlaps([*found, ["a"], ["a"]], [["v1", "v4", "v9"], ["a"], []])
    assert shares.tolist() == [2 / 3, 1.0]


@pytest.mark.parametrize(("videos", "k"), [(5, 1), (60, 6), (999, 99), (1000, 100), (50_000, 100)])
def test_of_a_small_corpus_a_tenth_counts_as_found(videos: int, k: int) -> None:
    assert k_of(corpus_of(np.ones((videos, 64), np.float32)), 100) == k


def test_a_few_misses_are_no_proof_and_many_are() -> None:
    for count, is_proof in ((1, False), (3, False), (12, True), (100, True)):
        ratio = Ratio.of(np.zeros(count, np.bool_), np.ones(count, np.bool_))
        assert ratio.value == 0
        assert (ratio.upper < 0.7) == is_proof
    nothing = Ratio.of(np.ones(5, np.bool_), np.zeros(5, np.bool_))
    assert np.isnan(nothing.value)
    better = Ratio.of(np.ones(50, np.bool_), np.arange(50) < 25)
    assert better.value == 2
    assert better.upper > 2


@pytest.mark.parametrize("users", [20, 100, 500])
@pytest.mark.parametrize("recall", [0.05, 0.3])
def test_models_that_are_as_good_are_refused_less_than_once_in_a_hundred(users: int, recall: float) -> None:
    rng = np.random.default_rng(users)
    refused = sum(
        Ratio.of(rng.random(users) < recall, rng.random(users) < recall).upper < 0.7 for _ in range(300)
    )
    # Found independently of each other, which is the noisiest that two models can be.
    assert refused <= 300 * 0.02


def test_a_model_that_lost_its_quality_is_refused_with_five_hundred_users() -> None:
    rng = np.random.default_rng(1)
    assert all(Ratio.of(rng.random(500) < 0.01, rng.random(500) < 0.1).upper < 0.7 for _ in range(100))


def test_spread_is_that_of_its_definition_and_none_for_constant_vectors() -> None:
    vectors = RNG.normal(loc=0.5, size=(70_000, 64)).astype(np.float32)
    moments = Moments.of(vectors)
    exact = vectors.astype(np.float64)
    distance = np.linalg.norm(exact - exact.mean(axis=0), axis=1)
    norms = np.linalg.norm(exact, axis=1)
    assert moments.spread == pytest.approx(np.sqrt((distance**2).mean() / (norms**2).mean()))
    assert moments.norms == pytest.approx(norms)
    for constant in (0.0, 1.0, 1e-20, 1e30):
        assert Moments.of(np.full((100, 64), constant, np.float32)).spread == pytest.approx(0, abs=1e-6)


def test_too_few_vectors_say_nothing_about_their_spread() -> None:
    settings = Settings()
    few, enough = (Moments.of(np.ones((count, 64), np.float32)) for count in (9, 10))
    assert failures(vector_gates("users", few, settings)) == []
    assert [result.name for result in failures(vector_gates("users", enough, settings))] == ["spread"]


def test_differences_are_measured_by_the_vectors_own_scale() -> None:
    large = np.full((10, 64), 1e3, np.float32)
    small = np.full((10, 64), 1e-3, np.float32)
    assert difference(large + np.float32(0.1), large) == pytest.approx(0.1 / 8e3, rel=0.01)
    assert difference(small + np.float32(0.1), small) == pytest.approx(0.1, rel=0.01)
    assert np.isnan(difference(large[:5], large))
