"""One contract for the blocking and the asyncio client, on a real server."""

import datetime as dt
import uuid
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from client_drivers import DRIVERS, Driver, DriverType
from client_server import CORPUS, Server, serve
from grpc_health.v1 import health_pb2

import keek
from keek.v1.trending_service_pb2 import ListTrendingRequest, TrendingRanking, WatchTrendingRequest

LIKE = keek.InteractionKind.INTERACTION_KIND_LIKE
RISING = TrendingRanking.TRENDING_RANKING_RISING


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


@pytest.fixture(params=DRIVERS, ids=["blocking", "asyncio"])
async def client(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Driver]:
    driver = request.param(server.target)
    yield driver
    await driver.close()


def _ids(items: Any) -> list[str]:
    return [item.video_id for item in items]


async def test_list_feed_gives_one_page_and_the_token_of_the_next(client: Driver, server: Server) -> None:
    first = await client.call("list_feed", "u1", page_size=4)
    second = await client.call("list_feed", "u1", page_size=4, page_token=first.next_page_token)
    assert _ids(first.items) == CORPUS[:4]
    assert _ids(second.items) == CORPUS[4:8]
    assert server.faults.requests["ListFeed"][0].user_id == "u1"  # type: ignore[attr-defined]


async def test_feed_pages_end_when_nothing_is_left(client: Driver, server: Server) -> None:
    pages = await client.collect("feed_pages", "u1", page_size=10)
    assert [_ids(page.items) for page in pages] == [CORPUS[:10], CORPUS[10:20], CORPUS[20:]]
    assert server.faults.attempts["ListFeed"] == 3


async def test_feed_pages_ask_for_no_page_that_is_not_read(client: Driver, server: Server) -> None:
    await client.take(1, "feed_pages", "u1", page_size=10)
    assert server.faults.attempts["ListFeed"] == 1


async def test_stream_feed_gives_the_pages_asked_for_in_one_call(client: Driver, server: Server) -> None:
    pages = await client.collect("stream_feed", "u1", page_count=2, page_size=3, page_token="5")
    assert [_ids(page.items) for page in pages] == [CORPUS[5:8], CORPUS[8:11]]
    assert server.faults.attempts["StreamFeed"] == 1


async def test_explain_feed_has_a_verdict_for_each_video_asked_about(client: Driver) -> None:
    answer = await client.call("explain_feed", "u1", ["v7", "v9"])
    assert _ids(answer.verdicts) == ["v7", "v9"]


@pytest.mark.parametrize("kind", ["view", "like", "save", "share", "skip"])
async def test_each_shortcut_records_its_kind_under_a_new_uuid(
    client: Driver, server: Server, kind: str
) -> None:
    done = await client.call(kind, "u1", "v3")
    stored = server.interactions.stored[done.event_id]
    assert str(uuid.UUID(done.event_id)) == done.event_id
    assert (stored.user_id, stored.video_id) == ("u1", "v3")
    assert stored.kind == keek.InteractionKind.Value(f"INTERACTION_KIND_{kind.upper()}")
    assert (done.created, done.in_feed) == (True, False)
    assert not stored.HasField("event_time")


async def test_two_likes_are_two_events(client: Driver, server: Server) -> None:
    first, second = await client.call("like", "u1", "v3"), await client.call("like", "u1", "v3")
    assert first.event_id != second.event_id
    assert len(server.interactions.stored) == 2


async def test_an_interaction_carries_what_the_caller_says_about_it(client: Driver, server: Server) -> None:
    event_id = str(uuid.uuid4())
    time = dt.datetime(2024, 5, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    options = {"event_id": event_id, "event_time": time, "region": "KZ", "wait_for_feed": True}
    first = await client.call("record_interaction", "u1", "v3", LIKE, **options)
    again = await client.call("record_interaction", "u1", "v3", LIKE, **options)
    assert first == keek.Recorded(event_id, created=True, in_feed=True)
    assert again == keek.Recorded(event_id, created=False, in_feed=True)
    stored = server.interactions.stored[event_id]
    assert stored.event_time.ToJsonString() == "2024-05-01T10:00:00Z"
    assert stored.region == "KZ"


async def test_a_shortcut_takes_the_region_as_well(client: Driver, server: Server) -> None:
    done = await client.call("share", "u1", "v3", region="KZ")
    assert server.interactions.stored[done.event_id].region == "KZ"


async def test_a_view_and_a_skip_say_how_long_was_watched(client: Driver, server: Server) -> None:
    for name, watched_s in (("view", 12.5), ("skip", 0.0), ("skip", None)):
        done = await client.call(name, "u1", "v3", watched_s=watched_s)
        stored = server.interactions.stored[done.event_id]
        assert stored.HasField("watched") is (watched_s is not None)
        assert stored.watched.ToTimedelta().total_seconds() == (watched_s or 0.0)
    with pytest.raises(ValueError, match="no number of seconds"):
        await client.call("view", "u1", "v3", watched_s=float("nan"))


async def test_interactions_made_beforehand_keep_their_region(client: Driver, server: Server) -> None:
    made = keek.interaction("u1", "v3", LIKE, region="KZ")
    await client.call("record_interactions", [made])
    assert server.interactions.stored[made.event_id] == made


async def test_an_event_time_without_a_zone_is_refused_before_it_is_sent(
    client: Driver, server: Server
) -> None:
    with pytest.raises(ValueError, match="no time zone"):
        await client.call("like", "u1", "v3", event_time=dt.datetime(2024, 5, 1))
    assert server.faults.attempts["RecordInteraction"] == 0


async def test_an_option_that_does_not_exist_is_an_error(client: Driver) -> None:
    with pytest.raises(TypeError, match="timeout_ms"):
        await client.call("like", "u1", "v3", timeout_ms=100)


async def test_many_interactions_go_in_batches_on_one_stream(client: Driver, server: Server) -> None:
    interactions = [keek.interaction(f"u{n}", "v1", LIKE) for n in range(2500)]
    answer = await client.call("record_interactions", iter(interactions))
    assert (answer.created_count, answer.duplicate_count) == (2500, 0)
    sizes = [len(r.interactions) for r in server.faults.requests["RecordInteractions"]]  # type: ignore[attr-defined]
    assert sizes == [1000, 1000, 500]


async def test_repeating_a_whole_stream_of_interactions_stores_nothing_twice(
    client: Driver, server: Server
) -> None:
    interactions = [keek.interaction(f"u{n}", "v1", LIKE) for n in range(1200)]
    await client.call("record_interactions", interactions)
    again = await client.call("record_interactions", interactions)
    assert (again.created_count, again.duplicate_count) == (0, 1200)
    assert len(server.interactions.stored) == 1200


async def test_no_interactions_are_no_error(client: Driver) -> None:
    answer = await client.call("record_interactions", [])
    assert answer.created_count == 0


async def test_what_the_callers_iterable_raises_reaches_the_caller(client: Driver) -> None:
    def broken() -> Any:
        yield keek.interaction("u1", "v1", LIKE)
        raise LookupError("my own fault")

    with pytest.raises(LookupError, match="my own fault"):
        await client.call("record_interactions", broken())


async def test_videos_are_imported_in_batches_and_counted(client: Driver, server: Server) -> None:
    videos = [keek.Video(video_id=f"n{n:04}", owner_id=f"o{n % 2}", tags=["a"]) for n in range(2100)]
    first = await client.call("import_videos", iter(videos))
    second = await client.call("import_videos", videos[:1])
    assert (first.created_count, first.updated_count) == (2100, 0)
    assert (second.created_count, second.updated_count) == (0, 1)
    sizes = [len(r.videos) for r in server.faults.requests["ImportVideos"]]  # type: ignore[attr-defined]
    assert sizes == [1000, 1000, 100, 1]


async def test_batches_of_large_videos_stay_under_a_servers_default_limit_of_4_mib(
    client: Driver, server: Server
) -> None:
    videos = [keek.Video(video_id=f"n{n}", tags=["t" * 128] * 32) for n in range(1000)]
    await client.call("import_videos", videos)
    sizes = [request.ByteSize() for request in server.faults.requests["ImportVideos"]]
    assert len(sizes) > 1
    assert max(sizes) < 1.1 * 2**20
    assert len(server.videos.stored) == 1000


async def test_get_video_gives_the_video_itself(client: Driver) -> None:
    await client.call("import_videos", [keek.Video(video_id="n1", title="One")])
    assert (await client.call("get_video", "n1")).title == "One"


async def test_list_videos_gives_one_page_and_iter_videos_all(client: Driver, server: Server) -> None:
    await client.call("import_videos", [keek.Video(video_id=f"n{n}", owner_id=f"o{n % 2}") for n in range(7)])
    page = await client.call("list_videos", page_size=3)
    assert _ids(page.videos) == ["n0", "n1", "n2"]
    assert _ids(await client.collect("iter_videos", page_size=3)) == [f"n{n}" for n in range(7)]
    assert server.faults.attempts["ListVideos"] == 4
    assert _ids(await client.collect("iter_videos", owner_id="o1")) == ["n1", "n3", "n5"]


async def test_trending_is_listed_by_page_or_iterated(client: Driver) -> None:
    page = await client.call("list_trending", page_size=3)
    assert _ids(page.videos) == CORPUS[:3]
    assert _ids(await client.collect("iter_trending", page_size=10)) == CORPUS


async def test_trending_asks_for_the_whole_list_by_default(client: Driver, server: Server) -> None:
    await client.call("list_trending")
    await client.collect("iter_trending")
    await client.take(1, "watch_trending", tag="", region="")
    listed, iterated = server.faults.requests["ListTrending"]
    assert (listed, iterated) == (ListTrendingRequest(), ListTrendingRequest(page_size=100))
    # Also no scope that is set and empty, which would be the list of an empty tag.
    assert server.faults.requests["WatchTrending"] == [WatchTrendingRequest()]


@pytest.mark.parametrize("scope", [{"tag": "cats"}, {"region": "KZ"}])
async def test_trending_can_be_rising_and_of_one_tag_or_region(
    client: Driver, server: Server, scope: dict[str, str]
) -> None:
    await client.call("list_trending", page_size=3, page_token="3", rising=True, **scope)
    await client.collect("iter_trending", page_size=20, rising=True, **scope)
    await client.take(1, "watch_trending", page_size=3, rising=True, **scope)
    assert server.faults.requests["ListTrending"] == [
        ListTrendingRequest(page_size=3, page_token="3", ranking=RISING, **scope),
        ListTrendingRequest(page_size=20, ranking=RISING, **scope),
        ListTrendingRequest(page_size=20, page_token="20", ranking=RISING, **scope),
    ]
    assert server.faults.requests["WatchTrending"] == [
        WatchTrendingRequest(page_size=3, ranking=RISING, **scope)
    ]


async def test_trending_of_a_tag_and_a_region_is_refused_before_it_is_sent(
    client: Driver, server: Server
) -> None:
    with pytest.raises(ValueError, match="not both"):
        await client.call("list_trending", tag="cats", region="KZ")
    for name in ("iter_trending", "watch_trending"):
        with pytest.raises(ValueError, match="not both"):
            getattr(client.client, name)(tag="cats", region="KZ")
    assert not server.faults.attempts


async def test_watching_trending_gives_the_list_and_what_changed_in_it(
    client: Driver, server: Server
) -> None:
    first, second, third = await client.take(3, "watch_trending", page_size=2)
    assert [_ids(now.videos) for now in (first, second, third)] == [CORPUS[:2], CORPUS[1:3], CORPUS[2:4]]
    assert (first.entered_video_ids, first.left_video_ids) == (CORPUS[:2], [])
    assert (third.entered_video_ids, third.left_video_ids) == (["v3"], ["v1"])
    assert server.faults.attempts["WatchTrending"] == 1


async def test_health_follows_the_server_and_an_unknown_service_is_not_found(
    client: Driver, server: Server
) -> None:
    status = health_pb2.HealthCheckResponse
    await server.health.set("keek.v1.FeedService", status.NOT_SERVING)
    assert await client.call("check_health") is True
    assert await client.call("check_health", "keek.v1.FeedService") is False
    await server.health.set("keek.v1.FeedService", status.SERVING)
    assert await client.call("check_health", "keek.v1.FeedService") is True
    with pytest.raises(keek.NotFoundError):
        await client.call("check_health", "keek.v1.NoService")


@pytest.mark.parametrize("connect", DRIVERS)
async def test_a_request_tells_the_server_which_client_asks(connect: DriverType) -> None:
    seen: list[str] = []

    class Spy(grpc.aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, details: Any) -> Any:
            seen.extend(value for key, value in details.invocation_metadata if key == "user-agent")
            return await continuation(details)

    spied = grpc.aio.server(interceptors=[Spy()])
    port = spied.add_insecure_port("127.0.0.1:0")
    await spied.start()
    driver = connect(f"127.0.0.1:{port}")
    with pytest.raises(keek.UnimplementedError):
        await driver.call("list_feed", "u1")
    await driver.close()
    await spied.stop(grace=None)
    assert seen[0].startswith(f"keek/{keek.__version__} ")
