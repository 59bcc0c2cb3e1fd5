"""Requests and batches, as both clients make them."""

import datetime as dt
import itertools
import uuid
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import keek
from keek.messages import (
    MAX_BATCH_BYTES,
    MAX_BATCH_ITEMS,
    Outgoing,
    abatches,
    batches,
    timestamp,
    trending_of,
)
from keek.v1.trending_service_pb2 import ListTrendingRequest, TrendingRanking, WatchTrendingRequest

LIKE = keek.InteractionKind.INTERACTION_KIND_LIKE


@given(st.lists(st.integers(0, 40_000), max_size=120), st.integers(0, 2500))
def test_batches_keep_all_items_in_order_within_both_limits(sizes: list[int], small: int) -> None:
    videos = [keek.Video(video_id=str(n), title="t" * size) for n, size in enumerate(sizes + [1] * small)]
    made = list(batches(videos))
    assert [video for batch in made for video in batch] == videos
    assert all(0 < len(batch) <= MAX_BATCH_ITEMS for batch in made)
    assert all(sum(video.ByteSize() for video in batch) <= MAX_BATCH_BYTES for batch in made)
    # None is smaller than it need be: with the first item of the next one it would be too large.
    for batch, following in itertools.pairwise(made):
        size = sum(video.ByteSize() for video in [*batch, following[0]])
        assert len(batch) == MAX_BATCH_ITEMS or size > MAX_BATCH_BYTES


def test_an_item_larger_than_a_batch_goes_alone() -> None:
    small, large = keek.Video(video_id="s"), keek.Video(video_id="l", title="t" * (MAX_BATCH_BYTES + 1))
    assert list(batches([small, large, small])) == [[small], [large], [small]]
    assert list(batches([large])) == [[large]]


async def test_an_async_iterable_is_cut_into_the_same_batches() -> None:
    videos = [keek.Video(video_id=str(n)) for n in range(2345)]

    async def slowly() -> AsyncIterator[keek.Video]:
        for video in videos:
            yield video

    expected = list(batches(videos))
    assert [batch async for batch in abatches(slowly())] == expected
    assert [batch async for batch in abatches(videos)] == expected


async def test_what_an_async_iterable_raises_is_kept_for_the_caller() -> None:
    async def broken() -> AsyncIterator[keek.Interaction]:
        yield keek.interaction("u", "v", LIKE)
        raise LookupError

    outgoing = Outgoing()
    assert [request async for request in outgoing.arequests(broken())] == []
    assert isinstance(outgoing.error, LookupError)


def test_interactions_get_event_ids_of_their_own_unless_one_is_given() -> None:
    first, second = keek.interaction("u", "v", LIKE), keek.interaction("u", "v", LIKE)
    assert uuid.UUID(first.event_id).version == 4
    assert first.event_id != second.event_id
    assert keek.interaction("u", "v", LIKE, event_id=first.event_id) == first


def test_an_interaction_has_no_region_unless_one_is_given() -> None:
    assert keek.interaction("u", "v", LIKE).region == ""
    assert keek.interaction("u", "v", LIKE, region="KZ").region == "KZ"


@pytest.mark.parametrize("request_type", [ListTrendingRequest, WatchTrendingRequest])
def test_trending_is_asked_for_by_tag_or_by_region_and_not_by_both(
    request_type: type[ListTrendingRequest | WatchTrendingRequest],
) -> None:
    everything = trending_of(request_type(), rising=False, tag="", region="")
    assert everything.WhichOneof("scope") is None
    assert everything.ranking == TrendingRanking.TRENDING_RANKING_UNSPECIFIED
    cats = trending_of(request_type(), rising=True, tag="cats", region="")
    assert cats == request_type(ranking=TrendingRanking.TRENDING_RANKING_RISING, tag="cats")
    assert trending_of(request_type(), rising=False, tag="", region="KZ") == request_type(region="KZ")
    with pytest.raises(ValueError, match="not both"):
        trending_of(request_type(), rising=False, tag="cats", region="KZ")


def test_times_are_kept_to_the_microsecond_in_utc() -> None:
    zone = dt.timezone(dt.timedelta(hours=-5))
    time = dt.datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=zone)
    assert timestamp(time).ToJsonString() == "2024-03-01T04:59:59.123456Z"


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        keek.interaction("u", "v", LIKE, event_time=dt.datetime(2024, 1, 1))
