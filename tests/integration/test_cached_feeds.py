"""Cached feeds: written for a release in a real Redis, and served only when Triton is gone."""

import asyncio
import dataclasses
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from projecting import Parts, open_parts
from release_serving import manifest

from keek_server.embedded.stack import EmbeddedStack
from keek_server.errors import UnavailableError
from keek_server.feed.cached import TTL_JITTER, CachedFeed, CachedFeeds, CachedSource
from keek_server.feed.explain import explain
from keek_server.feed.filters import FILTERS
from keek_server.feed.mixing import QuotaSelector
from keek_server.feed.pipeline import FeedPipeline, Stages
from keek_server.feed.scorers import SourceScorer
from keek_server.feed.sources import PopularSource
from keek_server.feed.types import Candidate, FeedContext, FeedPage, FeedQuery, FeedSource, Hydrator
from keek_server.interactions.history import History
from keek_server.interactions.projection import UserState
from keek_server.releases.figures import personalised_failed
from keek_server.releases.release import VIDEO_COLUMNS, Corpus, Release
from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.fresh import VECTORS
from keek_server.retrieval.ids import hash_id
from keek_server.retrieval.live import LiveIndex
from keek_server.settings import Settings
from keek_server.videos.filters import VideoFilter
from keek_training.hourly.feeds import make_feeds

if TYPE_CHECKING:
    from keek_server.releases.opening import ServingRelease

COUNT = 40
IDS = [f"v{i}" for i in range(COUNT)]


@pytest.fixture(scope="module")
def release() -> Release:
    """40 videos, two an owner, popular from the last to the first."""
    rng = np.random.default_rng(1)
    columns = {name: np.zeros((COUNT, *column.shape), column.dtype) for name, column in VIDEO_COLUMNS.items()}
    columns["vectors"] = rng.normal(size=(COUNT, 64)).astype(np.float32)
    columns["owners"] = np.array([hash_id(f"o{i // 2}") for i in range(COUNT)], np.uint64)
    columns["durations_s"] = np.arange(COUNT, dtype=np.float32)
    index, _ = build_index(columns["vectors"], columns["vectors"], IndexOptions(COUNT + 1, 1.0))
    corpus = Corpus.build(IDS, columns, np.arange(COUNT))
    return Release(manifest("r1", 1), corpus, index, None, None)


@pytest.fixture
async def parts(stack: EmbeddedStack, tmp_path: Path) -> AsyncIterator[Parts]:
    url = stack.settings.redis_url
    async with open_parts(Settings(data_dir=tmp_path, redis_url=url, redis_deadline_s=20.0)) as opened:
        yield opened


class Personalised:
    """Stands in for the one that asks Triton."""

    name = "personalised"
    source = FeedSource.PERSONALISED
    asks = "Triton"

    def __init__(self) -> None:
        self.works = False
        self.knows_nobody = False
        self.delay_s = 0.0

    def enabled(self, _context: FeedContext) -> bool:
        return not self.knows_nobody

    def at_once(self, _context: FeedContext, _count: int) -> None:
        return

    async def candidates(self, _context: FeedContext, _count: int) -> list[Candidate]:
        await asyncio.sleep(self.delay_s)
        if not self.works:
            raise UnavailableError("Triton is gone")
        return [Candidate(f"p{i}", self.source, 1.0 - i / 100) for i in range(30)]


class CountingSource(CachedSource):
    def __init__(self, feeds: CachedFeeds) -> None:
        super().__init__(feeds)
        self.asked = 0
        self.slice_s = 0.0

    async def candidates(self, context: FeedContext, count: int) -> list[Candidate]:
        self.asked += 1
        self.slice_s = context.remaining_s
        return await super().candidates(context, count)


class Seen:
    name = "projection"
    asks = "Redis"

    def __init__(self, *video_ids: str) -> None:
        self._seen = frozenset(video_ids)

    async def hydrate(self, context: FeedContext) -> None:
        context.user = UserState(History(), self._seen)


@dataclasses.dataclass
class Feed:
    """A pipeline over real parts, but for Triton."""

    serving: Any
    personalised: Personalised
    cached: CountingSource
    feeds: CachedFeeds
    seen: Seen = dataclasses.field(default_factory=Seen)
    hydrators: tuple[Hydrator, ...] = ()
    source_deadline_s: float = 20.0
    """Where nothing is to be late, nothing is, however long the machine pauses."""

    async def page(
        self, user_id: str = "u1", size: int = 10, deadline_s: float = 90.0, **wanted: Any
    ) -> FeedPage:
        stages = Stages(
            hydrators=self.hydrators or (self.seen,),
            sources=(self.personalised,),
            reserves=(PopularSource(),),
            filters=FILTERS,
            scorer=SourceScorer(),
            selector=QuotaSelector(),
            side_effects=(),
            fallbacks={FeedSource.PERSONALISED: self.cached},
        )
        pipeline = FeedPipeline(cast("Any", None), stages, source_deadline_s=self.source_deadline_s)
        query = FeedQuery(user_id, size, deadline_s, **wanted)
        return await pipeline.run(query, cast("ServingRelease", self.serving))


@pytest.fixture
def feed(parts: Parts, release: Release) -> Feed:
    index = LiveIndex(
        {VECTORS: release.index},
        release.corpus.ids,
        release.corpus.columns,
        fresh_columns=VIDEO_COLUMNS,
        fresh_limit=10,
    )
    fresh = SimpleNamespace(deleted=set(), index=index)
    feeds = CachedFeeds(parts.redis, parts.keys, deadline_s=20.0)
    serving = SimpleNamespace(release=release, fresh=fresh)
    return Feed(serving, Personalised(), CountingSource(feeds), feeds)


def cached(release_id: str = "r1", first: int = 0) -> CachedFeed:
    ids = IDS[first : first + 20]
    return CachedFeed(release_id, tuple(ids), tuple((90 - i) / 100 for i in range(len(ids))))


def sources(page: FeedPage) -> set[FeedSource]:
    return {item.source for item in page.selection.items}


async def test_the_cached_feed_replaces_personalised_videos_and_says_so(feed: Feed) -> None:
    await feed.feeds.write({"u1": cached()}, 60)
    page = await feed.page()
    assert [item.video_id for item in page.selection.items][:2] == ["v0", "v1"]
    assert sources(page) == {FeedSource.CACHED}
    assert page.selection.items[0].score == pytest.approx(0.9)
    (degradation,) = page.context.degradations
    assert (degradation.source, degradation.reason) == (FeedSource.PERSONALISED, "Triton is gone")
    assert degradation.replaced_by == [FeedSource.CACHED]
    traces = {trace.source: trace for trace in page.sources}
    assert traces[FeedSource.CACHED].candidate_count == 20


async def test_redis_is_not_asked_for_it_while_triton_answers(feed: Feed) -> None:
    await feed.feeds.write({"u1": cached()}, 60)
    feed.personalised.works = True
    page = await feed.page()
    assert sources(page) == {FeedSource.PERSONALISED}
    assert feed.cached.asked == 0
    assert FeedSource.CACHED not in {trace.source for trace in page.sources}


@pytest.mark.parametrize("given", [{}, {"u1": cached("r0")}, {"another": cached()}])
async def test_a_feed_of_another_release_or_user_or_none_counts_as_none(
    feed: Feed, given: dict[str, CachedFeed]
) -> None:
    if given:
        await feed.feeds.write(given, 60)
    page = await feed.page()
    assert len(page.selection.items) == 10
    assert sources(page) == {FeedSource.POPULAR}
    assert [each.replaced_by for each in page.context.degradations] == [[FeedSource.POPULAR]]


async def test_a_damaged_value_counts_as_none(feed: Feed, parts: Parts) -> None:
    for text in ("", "[", "[1,2]", '["r1",["v1"],[]]', '["r1",["v1"],["x"]]', "7", "null"):
        await parts.redis.set(parts.keys.cached_feed("u1"), text)
        assert sources(await feed.page()) == {FeedSource.POPULAR}


async def test_seen_and_deleted_videos_and_the_owners_share_are_as_in_any_feed(feed: Feed) -> None:
    await feed.feeds.write({"u1": cached()}, 60)
    feed.seen = Seen("v0", "v2")
    feed.serving.fresh.deleted.add("v4")
    page = await feed.page(size=5)
    assert [item.video_id for item in page.selection.items] == ["v1", "v3", "v5", "v6", "v7"]
    assert page.selection.items[0].owner == hash_id("o0")


async def test_owners_that_are_blocked_by_now_are_out_and_the_filter_of_the_request_holds(
    feed: Feed, release: Release
) -> None:
    await feed.feeds.write({"u1": cached()}, 60)
    # v4 has got another owner since the release was built.
    row = {name: column[4:5].copy() for name, column in release.corpus.columns.items()}
    row["owners"][0] = hash_id("o-blocked")
    feed.serving.fresh.index.put(["v4"], row)
    blocked = frozenset({hash_id("o0"), hash_id("o-blocked")})
    page = await feed.page(size=5, blocked_owners=blocked)
    assert [item.video_id for item in page.selection.items] == ["v2", "v3", "v5", "v6", "v7"]
    page = await feed.page(size=5, filter=VideoFilter(min_duration_s=8.0), blocked_owners=blocked)
    assert [item.video_id for item in page.selection.items] == ["v8", "v9", "v10", "v11", "v12"]


class Hydrating:
    """Stands in for one that asks Redis or SQL."""

    def __init__(self, name: str, problem: Exception | None = None, delay_s: float = 0.0) -> None:
        self.name = name
        self.asks = f"the {name}"
        self._problem = problem
        self._delay_s = delay_s

    async def hydrate(self, context: FeedContext) -> None:
        await asyncio.sleep(self._delay_s)
        if self._problem is not None:
            raise self._problem
        context.user = UserState(History(), frozenset({"v0"}))


async def test_where_the_history_comes_from_is_told_when_it_is_not_the_usual_place(feed: Feed) -> None:
    feed.personalised.works = True
    feed.hydrators = Hydrating("projection", UnavailableError("Redis is late")), Hydrating("log")
    page = await feed.page()
    (degradation,) = page.context.degradations
    assert degradation.reason == "history read from the log: Redis is late"
    assert degradation.source is FeedSource.PERSONALISED
    assert degradation.replaced_by == []
    assert sources(page) == {FeedSource.PERSONALISED}


@pytest.mark.parametrize("fault", [UnavailableError("SQL is gone"), ValueError("a mistake")])
async def test_without_any_history_the_cached_feed_stands_in_and_both_reasons_are_told(
    feed: Feed, fault: Exception
) -> None:
    await feed.feeds.write({"u1": cached()}, 60)
    feed.personalised.knows_nobody = True
    feed.hydrators = Hydrating("projection", UnavailableError("Redis is late")), Hydrating("log", fault)
    page = await feed.page()
    (degradation,) = page.context.degradations
    said = "SQL is gone" if isinstance(fault, UnavailableError) else "the log: internal error"
    assert degradation.reason == f"history unknown: Redis is late; {said}"
    assert degradation.replaced_by == [FeedSource.CACHED]
    assert sources(page) == {FeedSource.CACHED}
    assert not personalised_failed(page)  # nor is the release at fault


async def test_when_every_step_is_late_a_part_of_the_deadline_is_left(feed: Feed) -> None:
    feed.hydrators = Hydrating("projection", delay_s=99.0), Hydrating("log", delay_s=99.0)
    feed.personalised.delay_s = 99.0
    began = time.monotonic()
    page = await feed.page(deadline_s=3.0)
    assert len(page.selection.items) == 10
    assert time.monotonic() - began < 20.0
    told = [degradation.reason for degradation in page.context.degradations]
    assert told[0].startswith("history unknown: the projection: deadline of ")
    # Of both hydrators and Triton.
    slices_ms = [int(ms) for ms in re.findall(r"deadline of (\d+) ms exceeded", " ".join(told))][:3]
    assert len(slices_ms) == 3
    # Whatever the machine took for itself, no step may take more than a third of what is left.
    assert 300 < slices_ms[0] <= 1000
    left_ms = 3000
    for slice_ms in slices_ms:
        assert slice_ms <= left_ms / 3 + 1
        left_ms -= slice_ms
    assert feed.cached.slice_s * 1000 <= left_ms + 3


async def test_a_late_triton_leaves_the_cached_feed_what_is_left_of_the_deadline(feed: Feed) -> None:
    await feed.feeds.write({"u1": cached()}, 60)
    feed.personalised.delay_s = 99.0
    feed.source_deadline_s = 3.0
    page = await feed.page(deadline_s=60.0)
    assert sources(page) == {FeedSource.CACHED}
    assert page.context.degradations[0].reason == "Triton: deadline of 3000 ms exceeded"
    assert 0 < feed.cached.slice_s <= 57.0


async def test_why_a_video_is_there_or_absent_is_explained(feed: Feed) -> None:
    await feed.feeds.write({"u1": cached()}, 60)
    page = await feed.page(size=5)
    served, outranked, absent = explain(page, ["v0", "v19", "none"], {"v0", "v19", "none"})
    assert served.detail == "slot 1, from cached"
    assert "number 20 of 20 from cached" in outranked.detail
    assert not absent.served


async def test_what_is_written_expires_and_not_all_at_once(feed: Feed, parts: Parts) -> None:
    feeds = {f"u{i}": cached() for i in range(50)}
    await feed.feeds.write(feeds, 1000)
    left = [await parts.redis.pttl(parts.keys.cached_feed(user_id)) / 1000 for user_id in feeds]
    assert 1000 * (1 - TTL_JITTER) - 30 < min(left) < max(left) <= 1000 * (1 + TTL_JITTER)
    assert max(left) - min(left) > 10
    assert len(await parts.redis.get(parts.keys.cached_feed("u1"))) < 20 * 13 + 20
    assert (await feed.feeds.read("u1")) == cached()


def test_a_feed_is_the_nearest_unseen_videos_whatever_others_have_seen(release: Release) -> None:
    rng = np.random.default_rng(2)
    users = rng.normal(size=(6, 64)).astype(np.float32)
    seen = {"u0": set(IDS), "u1": set(IDS[:30]), "u2": {"v3"}, "u3": set(), "u4": {"gone"}}
    names = [f"u{i}" for i in range(6)]
    made = make_feeds(release, names, users, seen, 5)
    assert sorted(made) == names
    for name, vector in zip(names, users, strict=True):
        scores = release.corpus.vectors @ vector
        best = [IDS[row] for row in np.argsort(-scores) if IDS[row] not in seen.get(name, ())][:5]
        assert list(made[name].video_ids) == best
        assert list(made[name].scores) == pytest.approx([scores[IDS.index(each)] for each in best], rel=1e-4)
        assert made[name].release_id == "r1"
    assert made["u0"].video_ids == ()
