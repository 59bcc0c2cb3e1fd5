"""The head of the trending list that feeds share, over a real Redis and database."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
from background import beside
from projecting import Parts, event, open_parts

from keek_server.embedded.stack import EmbeddedStack
from keek_server.errors import UnavailableError
from keek_server.feed.sources import TrendingSource
from keek_server.feed.types import Candidate, FeedContext, FeedQuery
from keek_server.interactions.heads import TrendingHead
from keek_server.interactions.history import History
from keek_server.interactions.projection import UserState
from keek_server.interactions.recorder import Recorder
from keek_server.interactions.trending import Trending
from keek_server.retrieval.ids import hash_id
from keek_server.settings import Settings
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.video import Video

COUNT = 300
IDS = [f"v{n:03d}" for n in range(COUNT)]


class CountingTrending(Trending):
    """Counts the reads of its head, and holds them up or lets them fail."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts.projection, parts.settings)
        self.depths: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails = False

    async def rows(self, count: int) -> Sequence[tuple[str, float]]:
        self.depths.append(count)
        await self.gate.wait()
        if self.fails:
            raise UnavailableError("Redis is down")
        return await super().rows(count)


@pytest.fixture
async def parts(stack: EmbeddedStack, tmp_path: Path) -> AsyncIterator[Parts]:
    patience = {"redis_deadline_s": 10.0, "sql_read_deadline_s": 10.0}
    settings = Settings(data_dir=tmp_path, redis_url=stack.settings.redis_url, **patience)
    async with open_parts(settings) as opened:
        yield opened


@pytest.fixture
async def catalogue(parts: Parts) -> Catalogue:
    """Of 300 videos: v000 trends most, v299 least."""
    catalogue = Catalogue(parts.database)
    await catalogue.put([Video(id_, f"o{n}", [], 1.0, "", n) for n, id_ in enumerate(IDS)])
    appended = await parts.log.append([event("u", id_, age_s=60.0 * n) for n, id_ in enumerate(IDS)])
    projector = parts.projector()
    async with beside(projector.run()):
        assert await projector.wait_for(appended.seq, 60)
    return catalogue


@pytest.fixture
def trending(parts: Parts) -> CountingTrending:
    return CountingTrending(parts)


def context(*seen: str, deleted: frozenset[str] = frozenset(), **query: Any) -> FeedContext:
    serving: Any = SimpleNamespace(fresh=SimpleNamespace(deleted=deleted))
    return FeedContext(FeedQuery("u", 10, 1.0, **query), serving, 0, UserState(History(), frozenset(seen)))


def ids(candidates: list[Candidate]) -> list[str]:
    return [candidate.video_id for candidate in candidates]


async def test_many_feeds_share_one_read(trending: CountingTrending, catalogue: Catalogue) -> None:
    source = TrendingSource(trending, TrendingHead(trending, refresh_s=60.0), catalogue)
    trending.gate.clear()
    feeds = [asyncio.create_task(source.candidates(context(), 5)) for _ in range(20)]
    await asyncio.sleep(0.02)
    feeds[3].cancel()
    trending.gate.set()
    await asyncio.wait(feeds)
    assert all(ids(feed.result()) == IDS[:15] for feed in feeds if feed is not feeds[3])
    assert ids(await source.candidates(context(), 5)) == IDS[:15]
    assert len(trending.depths) == 1


async def test_scores_owners_and_order_are_those_of_the_list(
    trending: CountingTrending, catalogue: Catalogue
) -> None:
    source = TrendingSource(trending, TrendingHead(trending, refresh_s=60.0), catalogue)
    await source.candidates(context(), 10)
    candidates = await source.candidates(context(), 10)
    videos = (await trending.top(30)).videos
    assert ids(candidates) == [video.video_id for video in videos]
    assert [c.score for c in candidates] == pytest.approx([video.score for video in videos], rel=1e-3)
    assert [c.owner for c in candidates] == [hash_id(f"o{n}") for n in range(30)]


async def test_what_was_seen_and_served_is_passed_over(
    trending: CountingTrending, catalogue: Catalogue
) -> None:
    source = TrendingSource(trending, TrendingHead(trending, refresh_s=60.0), catalogue)
    served = tuple(map(hash_id, IDS[100:150]))
    assert ids(await source.candidates(context(*IDS[:100], served=served), 5)) == IDS[150:165]
    # It reads deeper only for those who need it.
    assert trending.depths == [128, 256]
    assert ids(await source.candidates(context(*IDS[:270]), 50)) == IDS[270:]
    assert ids(await source.candidates(context(), 5)) == IDS[:15]


async def test_a_head_is_read_again_when_it_is_too_old(
    trending: CountingTrending, catalogue: Catalogue
) -> None:
    head = TrendingHead(trending, refresh_s=0.1)
    source = TrendingSource(trending, head, catalogue)
    await source.candidates(context(*IDS[:150]), 5)
    await asyncio.sleep(0.12)
    await source.candidates(context(), 5)
    # As deep as those need who ask now.
    assert trending.depths == [128, 256, 128]


async def test_without_reuse_every_feed_reads(trending: CountingTrending, catalogue: Catalogue) -> None:
    source = TrendingSource(trending, TrendingHead(trending, refresh_s=0.0), catalogue)
    for _ in range(3):
        assert ids(await source.candidates(context(), 5)) == IDS[:15]
    assert len(trending.depths) == 3


@pytest.mark.parametrize("known_to_index", [True, False])
async def test_a_deleted_video_is_gone_from_the_very_next_feed(
    trending: CountingTrending, catalogue: Catalogue, *, known_to_index: bool
) -> None:
    source = TrendingSource(trending, TrendingHead(trending, refresh_s=60.0), catalogue)
    await source.candidates(context(), 5)
    if known_to_index:
        # Another server deleted it: the index has heard of it before the catalogue's own cache.
        after = await source.candidates(context(deleted=frozenset(IDS[:1])), 5)
    else:
        await catalogue.delete(IDS[0], "")
        after = await source.candidates(context(), 5)
    assert ids(after) == IDS[1:16]
    assert len(trending.depths) == 1


async def test_an_owner_that_changes_is_another_in_the_very_next_feed(
    trending: CountingTrending, catalogue: Catalogue
) -> None:
    source = TrendingSource(trending, TrendingHead(trending, refresh_s=60.0), catalogue)
    await source.candidates(context(), 5)
    await catalogue.update(IDS[0], {"owner_id": "heir"}, "")
    assert (await source.candidates(context(), 5))[0].owner == hash_id("heir")
    blocked = context(blocked_owners=frozenset({hash_id("heir"), hash_id("o2")}))
    assert ids(await source.candidates(blocked, 5)) == [IDS[1], *IDS[3:17]]
    assert len(trending.depths) == 1


async def test_who_waits_for_the_feed_sees_it_in_what_trends(
    parts: Parts, trending: CountingTrending, catalogue: Catalogue
) -> None:
    head = TrendingHead(trending, refresh_s=60.0)
    source = TrendingSource(trending, head, catalogue)
    projector = parts.projector()
    recorder = Recorder(parts.log, catalogue, projector, head, wait_for_feed_s=60.0)
    async with beside(projector.run()):
        assert ids(await source.candidates(context(), 1)) == IDS[:3]
        for fan in range(3):
            assert await recorder.record(event(f"fan{fan}", IDS[-1]), wait_for_feed=True) == (True, True)
        assert ids(await source.candidates(context(), 1)) == [IDS[-1], *IDS[:2]]


@pytest.mark.usefixtures("catalogue")
async def test_a_read_from_before_answers_nobody_who_asks_after(trending: CountingTrending) -> None:
    head = TrendingHead(trending, refresh_s=60.0)
    trending.gate.clear()
    before = asyncio.create_task(head.top(10))
    async with asyncio.timeout(10):
        while not trending.depths:
            await asyncio.sleep(0.02)
    head.expire()
    after = asyncio.create_task(head.top(10))
    await asyncio.sleep(0.02)
    trending.gate.set()
    assert (await before).rows == (await after).rows
    assert len(trending.depths) == 2


async def test_a_failure_reaches_those_who_wait_and_the_next_read_is_a_new_one(
    trending: CountingTrending, catalogue: Catalogue
) -> None:
    source = TrendingSource(trending, TrendingHead(trending, refresh_s=60.0), catalogue)
    trending.fails = True
    with pytest.raises(UnavailableError):
        await source.candidates(context(), 5)
    trending.fails = False
    assert ids(await source.candidates(context(), 5)) == IDS[:15]


async def test_without_sql_the_release_says_whose_the_videos_are_and_the_feed_says_so(
    trending: CountingTrending, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> NoReturn:
        raise UnavailableError("the database is not reachable")

    def columns_of(video_ids: Sequence[str], _names: object) -> tuple[Any, Any]:
        known = np.array([video_id != IDS[1] for video_id in video_ids])
        return known, {"owners": np.full(int(known.sum()), 7, np.uint64)}

    source = TrendingSource(trending, TrendingHead(trending, refresh_s=60.0), catalogue)
    monkeypatch.setattr(catalogue, "briefs", fail)
    asked = context()
    asked.serving.fresh.index = SimpleNamespace(columns_of=columns_of)  # type: ignore[misc, assignment]
    candidates = await source.candidates(asked, 5)
    assert ids(candidates) == [IDS[0], *IDS[2:16]]
    assert {candidate.owner for candidate in candidates} == {7}
    (degradation,) = asked.degradations
    assert degradation.reason == "looked up in the release alone: the database is not reachable"
    assert not asked.failed
    # It holds for this head and this release; another one says something else.
    again = FeedContext(asked.query, asked.serving, 0, asked.user)
    assert ids(await source.candidates(again, 5)) == ids(candidates)
    assert again.degradations == asked.degradations
    monkeypatch.undo()
    other = context()
    assert ids(await source.candidates(other, 5)) == IDS[:15]
    assert not other.degradations
