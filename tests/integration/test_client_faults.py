"""What both clients do when a server fails, is late, overloaded or gone."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from client_drivers import DRIVERS, Driver
from client_server import CORPUS, Fault, Server, bad_request, error_info, retry_info, serve
from google.protobuf.message import Message
from patience import TIMEOUTS, eventually

import keek

LIKE = keek.InteractionKind.INTERACTION_KIND_LIKE
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE

Connect = Callable[..., Driver]

IDEMPOTENT_CALLS = [
    ("ListFeed", "list_feed", ("u1",)),
    ("ExplainFeed", "explain_feed", ("u1",)),
    ("RecordInteraction", "like", ("u1", "v1")),
    ("RecordInteractions", "record_interactions", ([keek.interaction("u1", "v1", LIKE)],)),
    ("ListVideos", "list_videos", ()),
    ("ImportVideos", "import_videos", ([keek.Video(video_id="n1")],)),
    ("ListTrending", "list_trending", ()),
    ("CreateVideo", "create_video", (keek.Video(), "s3://bucket/a.mp4")),
    ("SearchVideos", "search_videos", ("a cat",)),
    ("ListSimilarVideos", "list_similar_videos", ("v1",)),
    ("FindAudience", "find_audience", ("v1",)),
    ("ListExperiments", "list_experiments", ()),
    ("CreateExperiment", "create_experiment", (keek.ExperimentDefinition(experiment_id="e1"),)),
]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


@pytest.fixture(params=DRIVERS, ids=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Connect]:
    """Makes clients of the server, or of another target."""
    made: list[Driver] = []

    def make(target: str | None = None, **settings: Any) -> Driver:
        made.append(request.param(target or server.target, **settings))
        return made[-1]

    yield make
    for driver in made:
        await driver.close()


# -- retries --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("method", "call", "arguments"), IDEMPOTENT_CALLS)
async def test_an_unavailable_server_fails_the_call_without_retries_and_not_with_them(
    connect: Connect, server: Server, method: str, call: str, arguments: tuple[Any, ...]
) -> None:
    server.faults.add(method, Fault(UNAVAILABLE))
    with pytest.raises(keek.UnavailableError):
        await connect(retry=None).call(call, *arguments)
    assert server.faults.attempts[method] == 1

    server.faults.add(method, Fault(UNAVAILABLE), Fault(UNAVAILABLE))
    await connect().call(call, *arguments)
    assert server.faults.attempts[method] == 4


async def test_a_stream_is_retried_before_its_first_page(connect: Connect, server: Server) -> None:
    server.faults.add("StreamFeed", Fault(UNAVAILABLE))
    with pytest.raises(keek.UnavailableError):
        await connect(retry=None).collect("stream_feed", "u1")
    server.faults.add("StreamFeed", Fault(UNAVAILABLE))
    assert len(await connect().collect("stream_feed", "u1", page_count=2)) == 2
    server.faults.add("WatchTrending", Fault(UNAVAILABLE))
    assert len(await connect().take(2, "watch_trending")) == 2


async def test_retries_end_after_max_attempts(connect: Connect, server: Server) -> None:
    server.faults.add("ListFeed", *[Fault(UNAVAILABLE, "still down")] * 9)
    with pytest.raises(keek.UnavailableError, match="still down"):
        await connect(retry=keek.RetryPolicy(max_attempts=3)).call("list_feed", "u1")
    assert server.faults.attempts["ListFeed"] == 3


async def test_retries_wait_as_their_policy_says(connect: Connect, server: Server) -> None:
    policy = keek.RetryPolicy(initial_backoff_s=0.3, max_backoff_s=0.3)
    client = connect(retry=policy)
    await client.call("list_feed", "u1")
    server.faults.add("ListFeed", Fault(UNAVAILABLE))
    start = asyncio.get_running_loop().time()
    await client.call("list_feed", "u1")
    # gRPC varies the wait by 20 %.
    assert asyncio.get_running_loop().time() - start > 0.2


async def test_every_retry_of_an_interaction_carries_the_same_event_id(
    connect: Connect, server: Server
) -> None:
    server.faults.add("RecordInteraction", Fault(UNAVAILABLE), Fault(UNAVAILABLE))
    done = await connect().call("like", "u1", "v1")
    sent: list[Any] = server.faults.requests["RecordInteraction"]
    assert [request.interaction.event_id for request in sent] == [done.event_id] * 3
    assert list(server.interactions.stored) == [done.event_id]


async def test_a_batch_larger_than_grpcs_default_retry_buffer_is_retried(
    connect: Connect, server: Server
) -> None:
    videos = [keek.Video(video_id=f"n{n}", title="t" * 512) for n in range(1000)]
    server.faults.add("ImportVideos", Fault(UNAVAILABLE))
    done = await connect().call("import_videos", videos)
    sizes = [request.ByteSize() for request in server.faults.requests["ImportVideos"]]
    assert min(sizes) > 256 * 1024
    assert (done.created_count, server.faults.attempts["ImportVideos"]) == (1000, 2)


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
    ],
)
async def test_nothing_but_unavailable_is_retried(
    connect: Connect, server: Server, code: grpc.StatusCode
) -> None:
    server.faults.add("ListFeed", Fault(code))
    with pytest.raises(keek.CallError):
        await connect().call("list_feed", "u1")
    assert server.faults.attempts["ListFeed"] == 1


# -- deadlines ------------------------------------------------------------------------------------
async def test_timeout_s_ends_a_call_and_the_work_on_the_server(connect: Connect, server: Server) -> None:
    client = connect()
    await client.call("list_feed", "u1")
    server.faults.add("ListFeed", Fault(delay_s=30))
    start = asyncio.get_running_loop().time()
    with pytest.raises(keek.DeadlineExceededError):
        await client.call("list_feed", "u1", timeout_s=2.0)
    assert 1.5 < asyncio.get_running_loop().time() - start < 20
    await eventually(lambda: "ListFeed" in server.faults.cancelled)


async def test_the_default_deadline_can_be_set_by_name(connect: Connect, server: Server) -> None:
    client = connect(timeouts=dataclasses.replace(TIMEOUTS, list_feed_s=0.2))
    await client.call("list_feed", "u1", timeout_s=30.0)
    server.faults.add("ListFeed", Fault(delay_s=30))
    with pytest.raises(keek.DeadlineExceededError):
        await client.call("list_feed", "u1")
    server.faults.add("ListTrending", Fault(delay_s=0.4))
    await client.call("list_trending")


async def test_the_deadline_holds_for_all_retries_together(connect: Connect, server: Server) -> None:
    client = connect()
    await client.call("list_feed", "u1")
    server.faults.add("ListFeed", *[Fault(UNAVAILABLE, delay_s=0.15)] * 4)
    with pytest.raises(keek.DeadlineExceededError):
        await client.call("list_feed", "u1", timeout_s=0.3)
    assert server.faults.attempts["ListFeed"] < 5


async def test_the_deadline_of_a_stream_holds_between_its_pages(connect: Connect, server: Server) -> None:
    server.faults.pause_s = 0.2
    with pytest.raises(keek.DeadlineExceededError):
        await connect().collect("stream_feed", "u1", page_count=20, page_size=1, timeout_s=0.5)


async def test_a_watch_ends_with_its_deadline_alone(connect: Connect, server: Server) -> None:
    client = connect(timeouts=dataclasses.replace(TIMEOUTS, watch_trending_s=2.0))
    await client.call("list_feed", "u1")
    with pytest.raises(keek.DeadlineExceededError):
        await client.collect("watch_trending")
    await eventually(lambda: server.faults.cancelled == ["WatchTrending"])


# -- errors ---------------------------------------------------------------------------------------
async def _failure(driver: Driver, server: Server, code: grpc.StatusCode, *details: Message) -> Any:
    server.faults.add("ListFeed", Fault(code, "told by the server", details))
    with pytest.raises(keek.CallError) as caught:
        await driver.call("list_feed", "u1")
    return caught.value


async def test_an_invalid_request_names_its_fields(connect: Connect, server: Server) -> None:
    error = await _failure(
        connect(),
        server,
        grpc.StatusCode.INVALID_ARGUMENT,
        error_info("INVALID_REQUEST", method="ListFeed"),
        bad_request(user_id="must not be empty", page_size="must be at most 100"),
    )
    assert isinstance(error, keek.InvalidArgumentError)
    assert error.violations == (
        keek.FieldViolation("user_id", "must not be empty"),
        keek.FieldViolation("page_size", "must be at most 100"),
    )
    assert (error.details.reason, error.details.domain) == ("INVALID_REQUEST", "keek")
    assert error.details.metadata == {"method": "ListFeed"}
    assert str(error) == "INVALID_ARGUMENT: told by the server"


async def test_an_overloaded_server_says_when_to_come_back(connect: Connect, server: Server) -> None:
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    error = await _failure(connect(), server, code, retry_info(1.25))
    assert isinstance(error, keek.ResourceExhaustedError)
    assert error.retry_after_s == 1.25


async def test_an_error_without_details_is_still_an_error(connect: Connect, server: Server) -> None:
    error = await _failure(connect(retry=None), server, UNAVAILABLE)
    assert isinstance(error, keek.UnavailableError)
    assert error.retry_after_s is None
    assert error.details == keek.ErrorDetails()


async def test_the_cause_of_an_error_is_grpcs_own(connect: Connect, server: Server) -> None:
    error = await _failure(connect(), server, grpc.StatusCode.INTERNAL)
    assert isinstance(error.__cause__, grpc.RpcError)
    assert error.__cause__.code() is error.code is grpc.StatusCode.INTERNAL


async def test_a_stream_that_breaks_gives_its_pages_and_then_the_error(
    connect: Connect, server: Server
) -> None:
    server.faults.fail_stream_after = 2
    driver = connect()
    pages = await driver.take(2, "stream_feed", "u1", page_count=5, page_size=3)
    assert [item.video_id for item in pages[1].items] == CORPUS[3:6]
    with pytest.raises(keek.InternalError) as caught:
        await driver.take(3, "stream_feed", "u1", page_count=5, page_size=3)
    assert caught.value.details.reason == "INTERNAL"


async def test_a_stream_that_is_left_early_ends_on_the_server(connect: Connect, server: Server) -> None:
    server.faults.pause_s = 30
    await connect().take(1, "stream_feed", "u1", page_count=5, page_size=3)
    await eventually(lambda: server.faults.cancelled == ["StreamFeed"])


async def test_a_watch_that_is_left_ends_on_the_server(connect: Connect, server: Server) -> None:
    await connect().take(3, "watch_trending")
    await eventually(lambda: server.faults.cancelled == ["WatchTrending"])


async def test_lists_that_the_server_does_not_keep_are_a_plain_call_error(
    connect: Connect, server: Server
) -> None:
    code = grpc.StatusCode.FAILED_PRECONDITION
    server.faults.add("WatchTrending", Fault(code, details=[error_info("NOT_KEPT")]))
    with pytest.raises(keek.CallError) as caught:
        await connect().take(1, "watch_trending", tag="cats")
    assert (caught.value.code, caught.value.details.reason) == (code, "NOT_KEPT")


async def test_a_server_that_refuses_a_stream_of_interactions_early_is_heard(
    connect: Connect, server: Server
) -> None:
    refusal = Fault(grpc.StatusCode.INVALID_ARGUMENT, "bad", [bad_request(interactions="must have a kind")])
    server.faults.add("RecordInteractions", refusal)
    interactions = [keek.interaction("u1", "v1", LIKE) for _ in range(20_000)]
    with pytest.raises(keek.InvalidArgumentError) as caught:
        await connect().call("record_interactions", interactions)
    assert caught.value.violations[0].field == "interactions"


async def test_nobody_listening_is_unavailable(connect: Connect, unused_tcp_port: int) -> None:
    with pytest.raises(keek.UnavailableError) as caught:
        await connect(f"127.0.0.1:{unused_tcp_port}").call("list_feed", "u1")
    assert caught.value.details.reason == ""


# -- several servers ------------------------------------------------------------------------------
async def test_all_addresses_of_a_target_are_used(connect: Connect, server: Server) -> None:
    async with serve() as other:
        client = connect(f"ipv4:{server.target},{other.target}")
        await _until_served(client, server, other)
        before = server.faults.attempts["ListFeed"], other.faults.attempts["ListFeed"]
        for _ in range(10):
            await client.call("list_feed", "u1")
        after = server.faults.attempts["ListFeed"], other.faults.attempts["ListFeed"]
        assert [end - start for start, end in zip(before, after, strict=True)] == [5, 5]


async def test_calls_go_to_the_server_that_is_left(connect: Connect, server: Server) -> None:
    async with serve() as other:
        client = connect(f"ipv4:{server.target},{other.target}")
        await _until_served(client, server, other)
    for _ in range(10):
        await client.call("list_feed", "u1")


async def _until_served(client: Driver, *servers: Server) -> None:
    async with asyncio.timeout(60):
        while not all(server.faults.attempts["ListFeed"] for server in servers):
            await client.call("list_feed", "u1")
