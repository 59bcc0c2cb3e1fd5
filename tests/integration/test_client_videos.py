"""One contract for both clients: changes of the catalogue, and search."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from client_drivers import DRIVERS, Driver
from client_server import CORPUS, Fault, Server, error_info, serve

import keek
from keek.v1.search_service_pb2 import (
    FindAudienceRequest,
    ListSimilarVideosRequest,
    SearchVideosRequest,
)
from keek.v1.video_filter_pb2 import VideoFilter


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


@pytest.fixture(params=DRIVERS, ids=["blocking", "asyncio"])
async def client(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Driver]:
    driver = request.param(server.target)
    yield driver
    await driver.close()


# -- changes --------------------------------------------------------------------------------------
async def test_a_video_is_created_from_where_its_file_lies(client: Driver, server: Server) -> None:
    url = "s3://bucket/a.mp4"
    stored = await client.call("create_video", keek.Video(video_id="n1", title="One"), url)
    assert (stored.video_id, stored.title, stored.original_url) == ("n1", "One", url)
    made = await client.call("create_video", keek.Video(), url)
    assert uuid.UUID(hex=made.video_id)
    with pytest.raises(keek.AlreadyExistsError) as caught:
        await client.call("create_video", keek.Video(video_id="n1"), url)
    assert caught.value.reason == "HAS_FILE"


@pytest.mark.parametrize(
    ("method", "call", "arguments"),
    [
        ("CreateVideo", "create_video", (keek.Video(video_id="n2"), "s3://b/a.mp4")),
        ("UpdateVideo", "update_video", (keek.Video(video_id="n1", title="New"), ["title"])),
        ("DeleteVideo", "delete_video", ("n1",)),
    ],
)
async def test_every_retry_of_a_change_carries_the_same_request_id(
    client: Driver, server: Server, method: str, call: str, arguments: tuple[Any, ...]
) -> None:
    server.videos.stored = {"n1": keek.Video(video_id="n1")}
    server.faults.add(method, Fault(grpc.StatusCode.UNAVAILABLE), Fault(grpc.StatusCode.UNAVAILABLE))
    await client.call(call, *arguments)
    sent: list[Any] = server.faults.requests[method]
    ids = {str(uuid.UUID(request.request_id)) for request in sent}
    assert (len(sent), len(ids)) == (3, 1)
    own = str(uuid.uuid4())
    server.videos.stored.clear()
    server.videos.stored["n1"] = keek.Video(video_id="n1")
    await client.call(call, *arguments, request_id=own)
    assert server.faults.requests[method][-1].request_id == own  # type: ignore[attr-defined]


async def test_a_deletion_whose_answer_was_lost_is_no_error(client: Driver, server: Server) -> None:
    server.videos.stored = {"n1": keek.Video(video_id="n1")}
    server.faults.lost_acknowledgements = 1
    assert await client.call("delete_video", "n1") is None
    assert server.faults.attempts["DeleteVideo"] == 2
    with pytest.raises(keek.NotFoundError):
        await client.call("delete_video", "n1")


async def test_an_update_changes_what_is_named_and_nothing_else(client: Driver, server: Server) -> None:
    server.videos.stored = {"n1": keek.Video(video_id="n1", title="One", owner_id="o1", tags=["a"])}
    change = keek.Video(video_id="n1", title="Two", tags=["b"])
    stored = await client.call("update_video", change, ["title"])
    assert (stored.title, stored.owner_id, list(stored.tags)) == ("Two", "o1", ["a"])
    stored = await client.call("update_video", change)
    assert (stored.title, stored.owner_id, list(stored.tags)) == ("Two", "", ["b"])
    with pytest.raises(keek.NotFoundError):
        await client.call("update_video", keek.Video(video_id="none"), ["title"])


async def test_an_import_says_which_clip_its_vectors_are_from(client: Driver, server: Server) -> None:
    await client.call("import_videos", [keek.Video(video_id="n1")], clip_model="ViT-B-32")
    [request] = server.faults.requests["ImportVideos"]
    assert request.clip_model == "ViT-B-32"  # type: ignore[attr-defined]


# -- search ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "query"),
    [
        ({"text": "a cat"}, {"text": "a cat"}),
        ({"image": b"JPEG"}, {"image": b"JPEG"}),
        ({"video_id": "v1"}, {"video_id": "v1"}),
    ],
)
async def test_videos_are_searched_by_text_image_or_video(
    client: Driver, server: Server, arguments: dict[str, Any], query: dict[str, Any]
) -> None:
    page = await client.call("search_videos", **arguments, page_size=3)
    assert [video.video_id for video in page.videos] == CORPUS[:3]
    assert (page.clip_model, page.clip_untrained, page.next_page_token) == ("ViT-B-32", False, "3")
    assert server.faults.requests["SearchVideos"] == [SearchVideosRequest(page_size=3, **query)]


FILTER = {
    "tags": ["a", "b"],
    "owner_id": "o1",
    "min_duration_s": 1.5,
    "max_duration_s": 60.0,
    "max_age_s": 86400.0,
    "languages": ["pt", "en-GB"],
    "regions": ["BR"],
}


async def test_search_takes_conditions_and_pages(client: Driver, server: Server) -> None:
    await client.call("search_videos", "a cat", **FILTER, page_size=5, page_token="10")
    await client.call("list_similar_videos", "v1", **FILTER, page_size=5, page_token="10")
    conditions = VideoFilter(**FILTER)  # type: ignore[arg-type]
    assert server.faults.requests["SearchVideos"] == [
        SearchVideosRequest(text="a cat", filter=conditions, page_size=5, page_token="10")
    ]
    assert server.faults.requests["ListSimilarVideos"] == [
        ListSimilarVideosRequest(video_id="v1", filter=conditions, page_size=5, page_token="10")
    ]


async def test_similar_videos_and_audiences_are_listed_by_page(client: Driver, server: Server) -> None:
    similar = await client.call("list_similar_videos", "v1", page_size=2)
    assert [video.video_id for video in similar.videos] == CORPUS[:2]
    audience = await client.call("find_audience", "v1", page_size=2, page_token="2")
    assert [(member.user_id, member.score) for member in audience.members] == [("u2", 1.5), ("u3", 1.5)]
    assert server.faults.requests["FindAudience"] == [
        FindAudienceRequest(video_id="v1", page_size=2, page_token="2")
    ]


@pytest.mark.parametrize("query", [{}, {"text": "a", "video_id": "v1"}, {"image": b""}, {"text": ""}])
async def test_not_exactly_one_query_is_refused_before_it_is_sent(
    client: Driver, server: Server, query: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="give one of"):
        await client.call("search_videos", **query)
    assert not server.faults.attempts


async def test_a_condition_that_does_not_exist_is_a_type_error(client: Driver) -> None:
    with pytest.raises(TypeError, match="tag"):
        await client.call("search_videos", "a cat", tag="x")


async def test_an_image_of_eight_mebibytes_can_be_sent(client: Driver, server: Server) -> None:
    image = bytes(8 << 20)
    await client.call("search_videos", image=image)
    assert len(server.faults.requests["SearchVideos"][0].image) == len(image)  # type: ignore[attr-defined]


async def test_a_release_without_clip_is_a_failed_precondition(client: Driver, server: Server) -> None:
    fault = Fault(grpc.StatusCode.FAILED_PRECONDITION, "no clip", [error_info("NO_CLIP")])
    server.faults.add("SearchVideos", fault)
    with pytest.raises(keek.FailedPreconditionError) as caught:
        await client.call("search_videos", "a cat")
    assert caught.value.reason == "NO_CLIP"
