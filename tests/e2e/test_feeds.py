"""Feeds through a real channel, from a trained model in a real Triton."""

import uuid
from collections import Counter
from collections.abc import Iterable

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from patience import TIMEOUTS
from serving import Served

import keek
import keek.aio
from keek.v1.feed_service_pb2 import FeedItem
from keek_server.feed.filters import FILTERS

PERSONALISED = keek.FeedSource.FEED_SOURCE_PERSONALISED
TRENDING = keek.FeedSource.FEED_SOURCE_TRENDING
POPULAR = keek.FeedSource.FEED_SOURCE_POPULAR


def ids(items: Iterable[FeedItem]) -> list[str]:
    return [item.video_id for item in items]


def sources(items: Iterable[FeedItem]) -> dict[int, int]:
    return dict(Counter(item.source for item in items))


async def personalised(served: Served, user_id: str) -> list[str]:
    items = (await served.client.list_feed(user_id, page_size=30)).items
    return ids(item for item in items if item.source == PERSONALISED)


async def make_trend(served: Served, count: int) -> list[str]:
    """Videos that have just been liked by several users."""
    videos = [video.video_id for video in (await served.client.list_videos(page_size=count)).videos]
    for video_id in videos:
        for fan in range(3):
            await served.client.like(f"fan{fan}", video_id, wait_for_feed=True)
    return videos


async def test_a_feed_is_seven_personalised_and_three_trending(served: Served) -> None:
    await make_trend(served, 12)
    response = await served.client.list_feed("u1", page_size=10)
    assert sources(response.items) == {PERSONALISED: 7, TRENDING: 3}
    assert len(set(ids(response.items))) == 10
    assert not response.degradations


async def test_every_item_says_source_score_and_release(served: Served) -> None:
    response = await served.client.list_feed("u2")
    assert served.app.live.current is not None
    for item in response.items:
        assert item.release_id == response.release_id == served.app.live.current.release.id
        assert item.source != 0
        assert item.score != 0
    personal = [item.score for item in response.items if item.source == PERSONALISED]
    assert personal == sorted(personal, reverse=True)


async def test_an_unknown_user_gets_popular_and_trending_videos(served: Served) -> None:
    await make_trend(served, 12)
    response = await served.client.list_feed("nobody-yet", page_size=10)
    assert sources(response.items) == {POPULAR: 7, TRENDING: 3}
    assert not response.degradations


async def test_a_like_changes_the_very_next_feed(served: Served) -> None:
    before = ids(
        i for i in (await served.client.list_feed("u7", page_size=30)).items if i.source == PERSONALISED
    )
    liked = [video.video_id for video in (await served.client.list_videos(page_size=500)).videos][-4:]
    for video_id in liked:
        recorded = await served.client.like("u7", video_id, wait_for_feed=True)
        assert recorded.created
        assert recorded.in_feed
    after = ids(
        i for i in (await served.client.list_feed("u7", page_size=30)).items if i.source == PERSONALISED
    )
    assert not set(liked) & set(after)
    assert [video_id for video_id in before if video_id not in liked] != after


async def test_a_video_that_many_like_reaches_other_users_as_trending(served: Served) -> None:
    video_id = "viral"
    await served.client.import_videos([keek.Video(video_id=video_id, owner_id="o-viral", tags=["new"])])
    # More than the views of all users are worth, which other tests may have given a video.
    for fan in range(50):
        await served.client.like(f"viral-fan{fan}", video_id, wait_for_feed=True)
    items = (await served.client.list_feed("u9", page_size=10)).items
    assert (video_id, TRENDING) in [(item.video_id, item.source) for item in items]
    assert (await served.client.list_trending(page_size=1)).videos[0].video_id == video_id


async def test_pages_have_no_duplicates_and_end(served: Served) -> None:
    seen: list[str] = []
    async for page in served.client.feed_pages("u3", page_size=40):
        seen += ids(page.items)
    assert len(seen) == len(set(seen))
    # Everything but what the user has interacted with: the feed does not end early.
    history = (await served.client.explain_feed("u3")).history_video_ids
    assert 600 - 200 <= len(seen) <= 601
    assert not set(seen) & set(history)


async def test_a_stream_gives_the_pages_that_lists_give(served: Served) -> None:
    streamed = [page async for page in served.client.stream_feed("u4", page_count=3, page_size=5)]
    assert [len(page.items) for page in streamed] == [5, 5, 5]
    listed = await served.client.list_feed("u4", page_size=5)
    assert ids(streamed[0].items) == ids(listed.items)
    second = await served.client.list_feed("u4", page_size=5, page_token=listed.next_page_token)
    assert ids(streamed[1].items) == ids(second.items)


async def test_interactions_have_a_port_of_their_own(served: Served) -> None:
    video_id = (await served.client.list_videos(page_size=1)).videos[0].video_id
    address = f"127.0.0.1:{served.app.interactions_port}"
    async with keek.aio.Client(address, timeouts=TIMEOUTS) as client:
        assert await client.check_health("keek.v1.InteractionService")
        assert (await client.like("fan-of-ports", video_id)).created
        with pytest.raises(keek.UnimplementedError):
            await client.list_feed("u1")


async def test_no_owner_fills_a_page(served: Served) -> None:
    owners = {video.video_id: video.owner_id async for video in served.client.iter_videos()}
    for user in ("u11", "u12", "u13"):
        items = (await served.client.list_feed(user, page_size=10)).items
        assert max(Counter(owners[item.video_id] for item in items).values()) <= 2


async def test_explain_says_why_a_video_is_there_or_absent(served: Served) -> None:
    feed = await served.client.list_feed("u5", page_size=10)
    history = list((await served.client.explain_feed("u5")).history_video_ids)
    asked = [feed.items[0].video_id, history[-1], "no-such-video"]
    explained = await served.client.explain_feed("u5", asked, page_size=10)
    assert [(v.served, v.stage) for v in explained.verdicts] == [
        (True, "mix"),
        (False, "seen"),
        (False, "catalogue"),
    ]
    assert ids(explained.items) == ids(feed.items)
    # The popular list is not asked: the page is as planned without it.
    assert {source.source for source in explained.sources} == {PERSONALISED, TRENDING}
    assert [trace.name for trace in explained.filters] == [filter_.name for filter_ in FILTERS]


async def test_a_token_of_another_user_is_refused_by_name(served: Served) -> None:
    token = (await served.client.list_feed("u1")).next_page_token
    with pytest.raises(keek.InvalidArgumentError) as refused:
        await served.client.list_feed("u2", page_token=token)
    assert [violation.field for violation in refused.value.violations] == ["page_token"]


async def test_every_broken_field_is_named(served: Served) -> None:
    with pytest.raises(keek.InvalidArgumentError) as refused:
        await served.client.list_feed("u" * 200, page_size=1000)
    assert {violation.field for violation in refused.value.violations} == {"user_id", "page_size"}


async def test_a_stream_with_a_broken_field_is_refused_too(served: Served) -> None:
    with pytest.raises(keek.InvalidArgumentError) as refused:
        async for _ in served.client.stream_feed("", page_count=99):
            pass
    assert {violation.field for violation in refused.value.violations} == {"user_id", "page_count"}


async def test_an_interaction_with_an_unknown_video_is_not_found_and_not_stored(served: Served) -> None:
    with pytest.raises(keek.NotFoundError):
        await served.client.like("u-lost", "no-such-video")
    assert not (await served.client.explain_feed("u-lost")).history_video_ids


async def test_a_repeated_event_id_counts_once(served: Served) -> None:
    event_id = str(uuid.uuid4())
    first = await served.client.like("u-twice", "v1", event_id=event_id, wait_for_feed=True)
    again = await served.client.like("u-twice", "v1", event_id=event_id, wait_for_feed=True)
    assert (first.created, again.created) == (True, False)
    assert list((await served.client.explain_feed("u-twice")).history_video_ids) == ["v1"]


async def test_a_batch_reports_what_it_rejected_and_stores_the_rest(served: Served) -> None:
    like = keek.InteractionKind.INTERACTION_KIND_LIKE
    good = [keek.interaction("u-batch", f"v{i}", like) for i in range(1, 6)]
    bad = keek.interaction("u-batch", "no-such-video", like)
    result = await served.client.record_interactions([*good, bad, good[0]])
    assert (result.created_count, result.duplicate_count, result.rejected_count) == (5, 1, 1)
    assert result.rejections[0].event_id == bad.event_id


async def test_videos_are_imported_updated_listed_and_found(served: Served) -> None:
    video = keek.Video(video_id="zz-1", owner_id="o-zz", tags=["a", "b"], duration_s=12.5, title="Zz")
    assert (await served.client.import_videos([video])).created_count == 1
    video.title = "Renamed"
    assert (await served.client.import_videos([video])).updated_count == 1
    assert (await served.client.get_video("zz-1")).title == "Renamed"
    assert [v.video_id async for v in served.client.iter_videos(owner_id="o-zz")] == ["zz-1"]
    with pytest.raises(keek.NotFoundError):
        await served.client.get_video("zz-2")


async def test_health_is_per_service(served: Served) -> None:
    for service in ("", "keek.v1.FeedService", "keek.v1.InteractionService", "keek.v1.TrendingService"):
        assert await served.client.check_health(service)


@pytest.mark.parametrize("package", ["grpc.reflection.v1", "grpc.reflection.v1alpha"])
async def test_reflection_lists_the_services_and_finds_methods_as_ghz_does(
    served: Served, package: str
) -> None:
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="keek.v1.FeedService.ListFeed"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="keek.v1.NoService"),
    ]
    async with grpc.aio.insecure_channel(served.address) as channel:
        method = channel.stream_stream(
            f"/{package}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        listed, found, missing = [response async for response in method(iter(requests))]
    names = {service.name for service in listed.list_services_response.service}
    assert {"keek.v1.FeedService", "keek.v1.InteractionService", "grpc.health.v1.Health"} <= names
    assert b"ListFeedRequest" in found.file_descriptor_response.file_descriptor_proto[0]
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
