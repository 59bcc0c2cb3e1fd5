"""Feeds of some videos alone: what the request asks for, without owners that the user has blocked."""

from collections import Counter
from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa
from serving import Served

import keek
from keek_server.storage.database import open_database
from keek_server.storage.tables import interactions

PERSONALISED = keek.FeedSource.FEED_SOURCE_PERSONALISED
TRENDING = keek.FeedSource.FEED_SOURCE_TRENDING
USER = "u31"


@pytest.fixture(scope="module")
async def videos(served: Served) -> dict[str, keek.Video]:
    """The catalogue by id, some of which trend."""
    found: dict[str, keek.Video] = {}
    token = ""
    while True:
        page = await served.client.list_videos(page_size=1000, page_token=token)
        found |= {video.video_id: video for video in page.videos}
        if not (token := page.next_page_token):
            break
    for video_id in list(found)[:60]:
        await served.client.like("fan of all", video_id)
    await served.client.like("fan of all", next(iter(found)), wait_for_feed=True)
    return found


async def seen(served: Served) -> set[str]:
    query = sa.select(interactions.c.video_id).where(interactions.c.user_id == USER)
    async with open_database(served.stack.settings) as database, database.read() as connection:
        return set((await connection.execute(query)).scalars())


async def pages(served: Served, video_filter: keek.VideoFilter) -> AsyncIterator[list[keek.FeedItem]]:
    async for page in served.client.feed_pages(USER, page_size=20, video_filter=video_filter):
        assert not page.degradations
        yield list(page.items)


def most_common_tag(videos: dict[str, keek.Video]) -> str:
    counts = Counter(tag for video in videos.values() for tag in video.tags)
    return counts.most_common(1)[0][0]


async def test_every_video_that_meets_a_filter_comes_once_and_no_other(
    served: Served, videos: dict[str, keek.Video]
) -> None:
    tag = most_common_tag(videos)
    ids = [item.video_id async for items in pages(served, keek.VideoFilter(tags=[tag])) for item in items]
    assert len(set(ids)) == len(ids)
    meeting = {id_ for id_, video in videos.items() if tag in video.tags}
    assert meeting - await seen(served) == set(ids)


async def test_a_filtered_page_has_both_kinds_of_videos(
    served: Served, videos: dict[str, keek.Video]
) -> None:
    language = Counter(video.language for video in videos.values() if video.language).most_common(1)[0][0]
    wanted = keek.VideoFilter(languages=[language], min_duration_s=5)
    page = await served.client.list_feed(USER, page_size=10, video_filter=wanted)
    assert {item.source for item in page.items} == {PERSONALISED, TRENDING}
    for item in page.items:
        assert videos[item.video_id].language == language
        assert videos[item.video_id].duration_s >= 5
    assert len(page.items) == 10


async def test_what_belongs_to_blocked_owners_is_not_shown_and_others_stand_in(
    served: Served, videos: dict[str, keek.Video]
) -> None:
    free = await served.client.list_feed(USER, page_size=20)
    blocked = {videos[item.video_id].owner_id for item in free.items}
    page = await served.client.list_feed(USER, page_size=20, blocked_owner_ids=blocked)
    assert len(page.items) == 20
    assert not {videos[item.video_id].owner_id for item in page.items} & blocked
    assert {item.source for item in page.items} >= {PERSONALISED}
    streamed = [
        item
        async for part in served.client.stream_feed(
            USER, page_count=2, page_size=20, blocked_owner_ids=blocked
        )
        for item in part.items
    ]
    assert len({item.video_id for item in streamed}) == 40
    assert not {videos[item.video_id].owner_id for item in streamed} & blocked


async def test_it_is_explained_why_a_video_is_left_out(served: Served, videos: dict[str, keek.Video]) -> None:
    known = await seen(served)
    unseen = [id_ for id_ in videos if id_ not in known]
    tag = most_common_tag(videos)
    other = next(id_ for id_ in unseen if tag not in videos[id_].tags)
    owned = next(id_ for id_ in unseen if videos[id_].owner_id and tag in videos[id_].tags)
    answer = await served.client.explain_feed(
        USER,
        [other, owned],
        video_filter=keek.VideoFilter(tags=[tag]),
        blocked_owner_ids=[videos[owned].owner_id],
    )
    verdicts = {verdict.video_id: (verdict.stage, verdict.detail) for verdict in answer.verdicts}
    assert verdicts[other] == ("filter", "it does not meet the filter of the request")
    assert verdicts[owned] == ("blocked", "the user has blocked its owner")


async def test_a_user_without_a_history_gets_a_filtered_feed_too(
    served: Served, videos: dict[str, keek.Video]
) -> None:
    tag = most_common_tag(videos)
    page = await served.client.list_feed(
        "nobody yet", page_size=10, video_filter=keek.VideoFilter(tags=[tag])
    )
    assert len(page.items) == 10
    assert all(tag in videos[item.video_id].tags for item in page.items)


async def test_a_condition_out_of_bounds_is_named(served: Served) -> None:
    with pytest.raises(keek.InvalidArgumentError, match="languages"):
        await served.client.list_feed(USER, video_filter=keek.VideoFilter(languages=["pt_BR"]))
    with pytest.raises(keek.InvalidArgumentError, match="blocked_owner_ids"):
        await served.client.list_feed(USER, blocked_owner_ids=[""])
