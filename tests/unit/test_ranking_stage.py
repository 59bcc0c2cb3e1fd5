"""The ranking stage by itself: what it asks, what it does to the order, and what it costs when it fails."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from keek_server.errors import UnavailableError
from keek_server.experiments.assignment import Assignment
from keek_server.experiments.definitions import ArmParameters
from keek_server.feed.mixing import QuotaSelector
from keek_server.feed.parameters import FeedParameters
from keek_server.feed.pipeline import FeedPipeline, Stages
from keek_server.feed.ranking import ReleaseRanking
from keek_server.feed.scorers import SourceScorer
from keek_server.feed.types import Candidate, FeedContext, FeedPage, FeedQuery, FeedSource
from keek_server.interactions.history import History, HistoryEntry
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.projection import UserState
from keek_server.releases.ranking import RankedVideos, ReleaseRanker
from keek_server.releases.release import VIDEO_COLUMNS, Corpus
from keek_server.retrieval.live import LiveIndex
from keek_server.towers.contract import DIMENSION, RANKING_FEATURES
from keek_server.towers.features import Float32Array
from keek_server.towers.ranking import RankedPage, Ranker

COUNT = 40
VERSION = 7
IDS = [f"v{number}" for number in range(COUNT)]
ON = FeedParameters(personalised_share=1.0, per_owner_cap=100, ranker=True)


class Model:
    """Scores by a function of the page; counts."""

    version = VERSION

    def __init__(self, score: Callable[[RankedPage], Any]) -> None:
        self._score = score
        self.pages: list[RankedPage] = []

    async def scores(self, page: RankedPage) -> Float32Array:
        self.pages.append(page)
        found = self._score(page)
        return np.asarray(await found if asyncio.iscoroutine(found) else found, np.float32)


class Found:
    """The videos by falling dot product, as the index would find them."""

    name = "personalised"
    source = FeedSource.PERSONALISED
    waits = False
    asks = "the index"

    def __init__(self, index: LiveIndex) -> None:
        self._index = index

    def enabled(self, _context: FeedContext) -> bool:
        return True

    def at_once(self, _context: FeedContext, _count: int) -> None:
        return

    async def candidates(self, context: FeedContext, _count: int) -> list[Candidate]:
        context.user_vector = np.ones(DIMENSION, np.float32)
        scores = np.asarray(self._index.columns["vectors"]).sum(axis=1)
        best = np.argsort(-scores)[:30].tolist()
        return [Candidate(IDS[row], self.source, float(scores[row])) for row in best]


class Known:
    name = "projection"
    asks = "Redis"

    async def hydrate(self, context: FeedContext) -> None:
        entry = HistoryEntry("v3", InteractionKind.LIKE, 0)
        context.user = UserState(History.of([entry]), frozenset())


@pytest.fixture
def corpus() -> Corpus:
    rng = np.random.default_rng(1)
    columns = {name: np.zeros((COUNT, *column.shape), column.dtype) for name, column in VIDEO_COLUMNS.items()}
    columns["vectors"] = rng.normal(size=(COUNT, DIMENSION)).astype(np.float32)
    columns["owners"] = np.arange(1, COUNT + 1, dtype=np.uint64)
    return Corpus.build(IDS, columns, np.arange(COUNT))


@pytest.fixture
def index(corpus: Corpus) -> LiveIndex:
    return LiveIndex({}, corpus.ids, corpus.columns, fresh_columns=VIDEO_COLUMNS, fresh_limit=10)


def worst_first(page: RankedPage) -> Float32Array:
    return -page.features[:, 0]


def pipeline_of(
    corpus: Corpus,
    index: LiveIndex,
    model: Model | None,
    *,
    arm: ArmParameters | None = None,
    parameters: FeedParameters = ON,
    deadline_s: float = 10.0,
) -> FeedPipeline:
    ranker = model and ReleaseRanker(cast("Any", model), RankedVideos.of(corpus, index))
    manifest = SimpleNamespace(history_length=5)
    serving = SimpleNamespace(
        release=SimpleNamespace(id="r", manifest=manifest, corpus=corpus),
        ranker=ranker,
        fresh=SimpleNamespace(index=index, deleted=frozenset()),
    )
    live: Any = SimpleNamespace(serving=lambda _user_id="": serving, pinned=lambda _id: None)
    stages = Stages(
        hydrators=(Known(),),
        sources=(Found(index),),
        reserves=(),
        filters=(),
        scorer=SourceScorer(),
        selector=QuotaSelector(),
        side_effects=(),
        ranking=ReleaseRanking(),
    )
    assigned = None if arm is None else Assignment((("e", "a"),), arm, "e/a")
    return FeedPipeline(
        live,
        stages,
        source_deadline_s=deadline_s,
        parameters=parameters,
        assign=None if assigned is None else lambda _query: assigned,
    )


async def page_of(pipeline: FeedPipeline) -> FeedPage:
    return await pipeline.run(FeedQuery("u", 10, 60.0))


def scores(page: FeedPage) -> list[float]:
    return [item.score for item in page.selection.items]


async def test_the_model_orders_and_the_scores_stay(corpus: Corpus, index: LiveIndex) -> None:
    model = Model(worst_first)
    page = await page_of(pipeline_of(corpus, index, model))
    plain = await page_of(pipeline_of(corpus, index, None))
    assert scores(page) == sorted(scores(page))
    assert scores(plain) == sorted(scores(plain), reverse=True)
    assert {c.video_id: c.score for c in page.candidates} == {c.video_id: c.score for c in plain.candidates}
    assert (page.context.ranker_version, plain.context.ranker_version) == (VERSION, 0)
    assert not page.context.degradations
    (asked,) = model.pages
    features = dict(zip(RANKING_FEATURES, asked.features.T, strict=True))
    np.testing.assert_allclose(features["affinity"], [c.score for c in plain.candidates], rtol=1e-4)
    # v39 is the most popular one, v0 is not at all; v3 is what the user did, whoever made it.
    listed = [c.video_id for c in plain.candidates]
    total = sum(range(COUNT))
    expected = [np.log(1 + 1e4 * int(id_[1:]) / total) for id_ in listed]
    np.testing.assert_allclose(features["popularity"], expected, rtol=1e-4)
    same = [float(id_ == "v3") for id_ in listed]
    assert features["owner_share"].tolist() == same
    alike = dict(zip(listed, features["max_similarity"].tolist(), strict=True))
    if "v3" in alike:
        assert alike["v3"] == pytest.approx(1.0, abs=1e-5)


async def test_switched_off_it_is_not_asked(corpus: Corpus, index: LiveIndex) -> None:
    model = Model(worst_first)
    off = FeedParameters(personalised_share=1.0, per_owner_cap=100)
    page = await page_of(pipeline_of(corpus, index, model, parameters=off))
    assert scores(page) == sorted(scores(page), reverse=True)
    assert not model.pages


def _unavailable(_page: RankedPage) -> Float32Array:
    raise UnavailableError("Triton is gone")


def _broken(_page: RankedPage) -> Float32Array:
    raise ZeroDivisionError


async def _late(page: RankedPage) -> Float32Array:
    await asyncio.sleep(30.0)
    return page.features[:, 0]


def _nan(page: RankedPage) -> Float32Array:
    found = page.features[:, 0].copy()
    found[4] = np.nan
    return found


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (_unavailable, "Triton is gone"),
        (_broken, "Triton's ranker: internal error"),
        (_late, "Triton's ranker: deadline of 1000 ms exceeded"),
        (_nan, "ranker version 7 gave scores that are not finite"),
    ],
)
async def test_where_it_fails_the_scores_order_and_the_feed_says_so(
    corpus: Corpus, index: LiveIndex, score: Callable[[RankedPage], Any], reason: str
) -> None:
    page = await page_of(pipeline_of(corpus, index, Model(score), deadline_s=1.0))
    assert scores(page) == sorted(scores(page), reverse=True)
    assert len(page.selection.items) == 10
    (degradation,) = page.context.degradations
    assert degradation.source is FeedSource.PERSONALISED
    assert degradation.reason == f"in the order of their scores: {reason}"
    assert not degradation.replaced_by
    assert not page.context.failed
    assert page.context.ranker_version == 0


async def test_what_is_removed_meanwhile_comes_last(corpus: Corpus, index: LiveIndex) -> None:
    best = (await page_of(pipeline_of(corpus, index, None))).candidates[0].video_id
    index.remove([best])
    model = Model(lambda page: page.features[:, 0])
    page = await page_of(pipeline_of(corpus, index, model))
    assert len(model.pages[0].vectors) == 29
    assert [c.video_id for c in page.candidates][-1] == best
    assert best not in [item.video_id for item in page.selection.items]


async def test_videos_are_drawn_among_the_best_of_the_ranker_and_logged_so(
    corpus: Corpus, index: LiveIndex
) -> None:
    explored = FeedParameters(personalised_share=1.0, per_owner_cap=100, ranker=True, video_exploration=0.5)
    page = await page_of(pipeline_of(corpus, index, Model(worst_first), parameters=explored))
    selection = page.selection
    assert selection.pool is not None
    pool = [
        selection.items[entry].video_id if isinstance(entry, int) else str(entry) for entry in selection.pool
    ]
    ranked = [candidate.video_id for candidate in page.candidates]
    assert pool == ranked[: len(pool)]
    assert selection.video_propensities is not None
    left = list(ranked)
    for item, odds in zip(selection.items, selection.video_propensities, strict=True):
        assert odds == pytest.approx(0.5 * (item.video_id == left[0]) + 0.5 / 20)
        left.remove(item.video_id)


@pytest.mark.parametrize("has_ranker", [True, False])
@pytest.mark.parametrize("wants", [True, False, None])
async def test_an_arm_that_wants_a_ranker_is_none_where_the_release_has_none(
    corpus: Corpus, index: LiveIndex, has_ranker: bool, wants: bool | None
) -> None:
    model = Model(worst_first) if has_ranker else None
    off = FeedParameters(personalised_share=1.0, per_owner_cap=100)
    arm = ArmParameters(ranker=wants)
    page = await page_of(pipeline_of(corpus, index, model, arm=arm, parameters=off))
    is_ranked = has_ranker and bool(wants)
    assert scores(page) == sorted(scores(page), reverse=not is_ranked)
    assert page.context.assignment.label == ("" if wants and not has_ranker else "e/a")
    assert not page.context.degradations


def test_the_parameter_counts_as_set_either_way() -> None:
    assert ArmParameters(ranker=False).named == {"ranker"} == ArmParameters(ranker=True).named
    assert not ArmParameters().named
    usual = FeedParameters(ranker=True)
    assert not usual.with_arm(ArmParameters(ranker=False)).ranker
    assert usual.with_arm(ArmParameters(exploration=0.1)).ranker


class Triton:
    """Answers with what it is given."""

    def __init__(self, answer: Float32Array) -> None:
        self.answer = answer

    async def vectors(self, *_given: object, deadline_s: float) -> Float32Array:
        return self.answer


async def test_an_answer_of_another_shape_is_none() -> None:
    vectors = np.ones((3, DIMENSION), np.float32)
    page = RankedPage(vectors[0], vectors, np.ones((3, len(RANKING_FEATURES)), np.float32))
    triton = Triton(np.ones((1, 3), np.float32))
    ranker = Ranker(cast("Any", triton), VERSION, deadline_s=1.0)
    assert (await ranker.scores(page)).tolist() == [1.0, 1.0, 1.0]
    triton.answer = np.ones((1, 2), np.float32)
    with pytest.raises(UnavailableError, match=r"ranker version 7 gave scores \[1, 2\], not \[1, 3\]"):
        await ranker.scores(page)
