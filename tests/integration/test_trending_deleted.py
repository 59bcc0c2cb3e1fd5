"""Deleted videos trend on in the projection, and are named nowhere; in a real Redis and database."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from background import beside
from projecting import Parts, event, open_parts

from keek.v1 import trending_service_pb2 as pb
from keek_server.embedded.stack import EmbeddedStack
from keek_server.feed.sources import TrendingSource
from keek_server.feed.types import FeedContext, FeedQuery
from keek_server.interactions.heads import TrendingHead
from keek_server.interactions.watch import TrendingWatch
from keek_server.retrieval.ids import hash_id
from keek_server.rpc.trending import TrendingServicer
from keek_server.settings import Settings
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.slots import Slots
from keek_server.videos.video import Video

COUNT = 60
RISING = pb.TrendingRanking.TRENDING_RANKING_RISING
CALLER: Any = None


@pytest.fixture
async def parts(stack: EmbeddedStack, tmp_path: Path) -> AsyncIterator[Parts]:
    patience = {"redis_deadline_s": 10.0, "sql_read_deadline_s": 10.0}
    settings = Settings(data_dir=tmp_path, redis_url=stack.settings.redis_url, **patience)
    async with open_parts(settings) as opened:
        yield opened


@pytest.fixture
async def catalogue(parts: Parts) -> Catalogue:
    """Of 60 videos: v00 trends most and rises fastest, v59 least."""
    catalogue = Catalogue(parts.database)
    await catalogue.put([Video(f"v{n:02d}", f"o{n}", [], 1.0, "", n) for n in range(COUNT)])
    appended = await parts.log.append(
        [event(f"u{u}", f"v{n:02d}") for n in range(COUNT) for u in range(4 + COUNT - n)]
    )
    projector = parts.projector()
    async with beside(projector.run()):
        assert await projector.wait_for(appended.seq, 60)
    return catalogue


async def delete(catalogue: Catalogue, numbers: range) -> None:
    for number in numbers:
        await catalogue.delete(f"v{number:02d}", "")


def servicer_of(parts: Parts, catalogue: Catalogue) -> TrendingServicer:
    watch = TrendingWatch(Slots(1, "callers of WatchTrending"))
    return TrendingServicer(parts.trending, catalogue, watch)


def names(numbers: range) -> list[str]:
    return [f"v{number:02d}" for number in numbers]


@pytest.mark.parametrize("known_to_index", [True, False])
async def test_a_feed_has_its_trending_share_though_the_strongest_were_deleted(
    parts: Parts, catalogue: Catalogue, *, known_to_index: bool
) -> None:
    await delete(catalogue, range(31))
    deleted = set(names(range(31))) if known_to_index else set()
    serving: Any = SimpleNamespace(fresh=SimpleNamespace(deleted=deleted))
    context = FeedContext(FeedQuery("u", 10, 1.0), serving, 0)
    head = TrendingHead(parts.trending, refresh_s=0.2)
    candidates = await TrendingSource(parts.trending, head, catalogue).candidates(context, 5)
    assert [candidate.video_id for candidate in candidates] == names(range(31, 46))
    assert [candidate.owner for candidate in candidates] == [hash_id(f"o{n}") for n in range(31, 46)]


async def pages(servicer: TrendingServicer, size: int, **request: Any) -> list[list[str]]:
    """All pages of a list."""
    shown, token = [], ""
    while True:
        answer = await servicer.ListTrending(
            pb.ListTrendingRequest(page_size=size, page_token=token, **request), CALLER
        )
        shown.append([video.video_id for video in answer.videos])
        token = answer.next_page_token
        if not token:
            return shown


@pytest.mark.parametrize("ranking", [pb.TrendingRanking.TRENDING_RANKING_TOP, RISING])
async def test_the_pages_of_a_list_hold_what_exists_once_and_in_order(
    parts: Parts, catalogue: Catalogue, ranking: int
) -> None:
    servicer = servicer_of(parts, catalogue)
    everything = [id_ for page in await pages(servicer, 7, ranking=ranking) for id_ in page]
    assert sorted(everything) == names(range(COUNT))
    await delete(catalogue, range(10, 31))
    await delete(catalogue, range(50, 60))
    left = names(range(10)) + names(range(31, 50))
    shown = await pages(servicer, 7, ranking=ranking)
    assert [id_ for page in shown for id_ in page] == [id_ for id_ in everything if id_ in left]
    assert all(len(page) == 7 for page in shown[:-1])


async def test_where_all_is_gone_for_long_a_page_is_empty_and_its_token_goes_on(
    parts: Parts, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keek_server.interactions.trending._LATER_READ", 5)
    await delete(catalogue, range(55))
    shown = await pages(servicer_of(parts, catalogue), 3)
    assert shown[0] == []
    assert [id_ for page in shown for id_ in page] == names(range(55, 60))


async def test_a_watched_list_loses_a_video_when_it_is_deleted(parts: Parts, catalogue: Catalogue) -> None:
    watch = servicer_of(parts, catalogue).WatchTrending(pb.WatchTrendingRequest(page_size=3), CALLER)
    first = await anext(watch)
    assert [video.video_id for video in first.videos] == names(range(3))
    await delete(catalogue, range(1))
    second = await asyncio.wait_for(anext(watch), 20)
    assert [video.video_id for video in second.videos] == names(range(1, 4))
    assert (list(second.entered_video_ids), list(second.left_video_ids)) == (["v03"], ["v00"])
    await watch.aclose()  # type: ignore[attr-defined]
