"""What a server reuses is not seen in its feeds: compared with a server that reuses nothing."""

from collections.abc import AsyncIterator, Iterable

import pytest
from patience import DEADLINES, TIMEOUTS
from serving import Served

import keek
import keek.aio
from keek.v1.feed_service_pb2 import FeedItem, ListFeedResponse
from keek_server.app import open_app
from keek_server.clock import now_us
from keek_server.embedded import EmbeddedStack

USERS = [f"u{n}" for n in range(1, 41)]
SIZE = 20


@pytest.fixture(scope="module")
async def plain(served: Served, published: EmbeddedStack) -> AsyncIterator[keek.aio.Client]:
    """Of a server that reads and computes everything for every feed."""
    settings = published.settings.model_copy(
        update={
            "listen": "127.0.0.1:0",
            **DEADLINES,
            "reuse_user_vectors": False,
            "trending_refresh_s": 0.0,
        }
    )
    assert served.app.live.current is not None
    async with (
        open_app(settings) as app,
        keek.aio.Client(f"127.0.0.1:{app.port}", timeouts=TIMEOUTS) as client,
    ):
        await app.live.wait()
        yield client


def ids(items: Iterable[FeedItem]) -> list[tuple[str, int]]:
    return [(item.video_id, item.source) for item in items]


async def feeds(client: keek.aio.Client) -> list[ListFeedResponse]:
    return [await client.list_feed(user_id, page_size=SIZE) for user_id in USERS]


async def test_the_same_moment_gives_the_same_feeds(
    served: Served, plain: keek.aio.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment_us = now_us()
    # What the first feeds leave is reused at once, and while and after the users' interactions grow older.
    for later_s in (0, 0, 30, 600, 3600):
        monkeypatch.setattr(
            "keek_server.feed.pipeline.now_us", lambda moment_us=moment_us + later_s * 1_000_000: moment_us
        )
        reused, computed = await feeds(served.client), await feeds(plain)
        for one, other in zip(reused, computed, strict=True):
            assert ids(one.items) == ids(other.items)
            assert [i.score for i in one.items] == pytest.approx([i.score for i in other.items], rel=1e-3)
    assert served.app.live.current is not None
    assert len(served.app.live.current.users.kept) >= len(USERS)


async def test_pages_of_a_session_are_the_same(served: Served, plain: keek.aio.Client) -> None:
    token_of_one = token_of_other = ""
    for _ in range(4):
        one = await served.client.list_feed("u50", page_size=SIZE, page_token=token_of_one)
        other = await plain.list_feed("u50", page_size=SIZE, page_token=token_of_other)
        assert len(set(ids(one.items)) & set(ids(other.items))) >= SIZE - 1
        token_of_one, token_of_other = one.next_page_token, other.next_page_token


async def test_every_like_is_in_the_very_next_feed(served: Served) -> None:
    user_id = "u60"
    for _ in range(10):
        items = (await served.client.list_feed(user_id, page_size=SIZE)).items
        liked = next(i.video_id for i in items if i.source == keek.FeedSource.FEED_SOURCE_PERSONALISED)
        assert (await served.client.like(user_id, liked, wait_for_feed=True)).in_feed
        explained = await served.client.explain_feed(user_id, page_size=SIZE)
        assert explained.history_video_ids[-1] == liked
        assert liked not in [item.video_id for item in explained.items]
