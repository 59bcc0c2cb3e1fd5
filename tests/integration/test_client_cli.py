"""The command line `keek`, run as a program against a real server."""

import asyncio
import json
import os
import signal
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence

import grpc
import pytest
from client_program import Done, finish, interruptible_programs, run_keek, start
from client_server import CORPUS, Fault, Server, bad_request, error_info, retry_info, serve
from patience import eventually

import keek
from keek.v1.trending_service_pb2 import ListTrendingRequest, TrendingRanking, WatchTrendingRequest


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


@pytest.fixture
def interruptible() -> Iterator[None]:
    with interruptible_programs():
        yield


# -- feeds and trending ---------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [(), ("--stream",)])
async def test_feed_shows_as_many_items_as_asked_for(server: Server, stream: Sequence[str]) -> None:
    done = await run_keek(server.target, "feed", "u1", "--count", "12", "--page-size", "5", *stream)
    assert (done.code, done.err) == (0, "")
    assert done.lines[0] == ["#", "VIDEO", "SOURCE", "SCORE", "RELEASE", "ARM"]
    assert done.lines[1] == ["1", "v0", "personalised", "0.5", "r1"]
    assert [line[1] for line in done.lines[1:]] == CORPUS[:12]
    assert len({line.index("personalised") for line in done.out.splitlines()[1:]}) == 1


@pytest.mark.parametrize("stream", [(), ("--stream",)])
async def test_feed_ends_where_the_corpus_ends(server: Server, stream: Sequence[str]) -> None:
    done = await run_keek(server.target, "feed", "u1", "--count", "60", *stream)
    assert [line[1] for line in done.lines[1:]] == CORPUS


async def test_feed_streams_in_one_call_and_lists_in_several(server: Server) -> None:
    await run_keek(server.target, "feed", "u1", "--count", "12", "--page-size", "5", "--stream")
    await run_keek(server.target, "feed", "u1", "--count", "12", "--page-size", "5")
    assert server.faults.attempts["StreamFeed"] == 1
    sizes = [request.page_size for request in server.faults.requests["ListFeed"]]  # type: ignore[attr-defined]
    assert sizes == [5, 5, 2]


@pytest.mark.parametrize("stream", [(), ("--stream",)])
async def test_feed_as_json_is_one_response_a_line(server: Server, stream: Sequence[str]) -> None:
    done = await run_keek(server.target, "--json", "feed", "u1", "--count", "12", "--page-size", "5", *stream)
    assert [[item["video_id"] for item in page["items"]] for page in done.json] == [
        CORPUS[:5],
        CORPUS[5:10],
        CORPUS[10:12],
    ]
    assert done.json[0]["items"][0]["source"] == "FEED_SOURCE_PERSONALISED"
    assert done.json[0]["next_page_token"] == "5"
    assert done.json[-1]["next_page_token"] in ("12", "")


@pytest.mark.parametrize(("options", "line_count"), [((), 3), (("--json",), 1)])
async def test_streamed_pages_are_shown_as_they_come(
    server: Server, options: Sequence[str], line_count: int
) -> None:
    server.faults.pause_s = 100
    arguments = ["feed", "u1", "--count", "4", "--page-size", "2", "--stream", *options]
    process = await start(server.target, *arguments)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            seen = [await process.stdout.readline() for _ in range(line_count)]
    finally:
        process.terminate()
        await finish(process)
    assert b"v1" in seen[-1]
    assert b"v2" not in seen[-1]


async def test_what_is_degraded_is_said_beside_the_feed(server: Server) -> None:
    done = await run_keek(server.target, "feed", "degraded")
    assert len(done.lines) == 11
    assert done.err == "degraded: personalised: deadline of 80 ms exceeded; replaced by trending\n"


async def test_explain_shows_every_stage_and_a_verdict_for_each_video(server: Server) -> None:
    done = await run_keek(server.target, "explain", "u1", "v7", "v9")
    assert done.code == 0
    for words in (
        ["release", "r1"],
        ["personalised", "25", "1.5"],
        ["seen", "24", "1"],
        ["personalised", "7", "2"],
        ["v7", "no", "seen", "you", "have", "already", "seen", "it"],
        ["v9", "no", "seen", "you", "have", "already", "seen", "it"],
    ):
        assert words in done.lines
    [answer] = (await run_keek(server.target, "explain", "u1", "v7", "--json")).json
    assert answer["verdicts"][0]["stage"] == "seen"


async def test_trending_lists_as_many_as_asked_for(server: Server) -> None:
    done = await run_keek(server.target, "trending", "--count", "3")
    assert done.lines == [
        ["#", "VIDEO", "SCORE"],
        ["1", "v0", "2.5"],
        ["2", "v1", "2.5"],
        ["3", "v2", "2.5"],
    ]
    assert [
        video["video_id"] for video in (await run_keek(server.target, "trending", "--json")).json
    ] == CORPUS[:10]


@pytest.mark.parametrize("scope", [{"tag": "cats"}, {"region": "KZ"}])
async def test_trending_can_be_rising_and_of_one_tag_or_region(server: Server, scope: dict[str, str]) -> None:
    [(name, value)] = scope.items()
    done = await run_keek(server.target, "trending", "--rising", f"--{name}", value)
    assert (done.code, done.err) == (0, "")
    expected = ListTrendingRequest(page_size=10, ranking=TrendingRanking.TRENDING_RANKING_RISING, **scope)
    assert server.faults.requests["ListTrending"] == [expected]


async def _watched(server: Server, line_count: int, *options: str) -> tuple[list[str], Done]:
    """The first lines that a watch prints, and its end by Ctrl-C."""
    process = await start(server.target, "trending", "--watch", "--count", "2", *options)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        lines = [(await process.stdout.readline()).decode() for _ in range(line_count)]
    process.send_signal(signal.SIGINT)
    return lines, await finish(process)


@pytest.mark.usefixtures("interruptible")
async def test_a_watch_shows_the_list_again_at_each_change_until_ctrl_c(server: Server) -> None:
    lines, done = await _watched(server, 11, "--rising", "--tag", "cats")
    header = ["#", "VIDEO", "SCORE"]
    assert [line.split() for line in lines] == [
        *(header, ["1", "v0", "2.5"], ["2", "v1", "2.5"], []),
        *(header, ["1", "v1", "2.5"], ["2", "v2", "2.5"], []),
        *(header, ["1", "v2", "2.5"], ["2", "v3", "2.5"]),
    ]
    assert done == Done(130, "", "")
    rising = TrendingRanking.TRENDING_RANKING_RISING
    expected = WatchTrendingRequest(page_size=2, ranking=rising, tag="cats")
    assert server.faults.requests["WatchTrending"] == [expected]
    await eventually(lambda: server.faults.cancelled == ["WatchTrending"])


@pytest.mark.usefixtures("interruptible")
async def test_a_watch_as_json_is_one_response_a_line(server: Server) -> None:
    lines, done = await _watched(server, 3, "--json")
    now = [json.loads(line) for line in lines]
    assert [[video["video_id"] for video in each["videos"]] for each in now] == [
        ["v0", "v1"],
        ["v1", "v2"],
        ["v2", "v3"],
    ]
    assert (now[0]["entered_video_ids"], now[0]["left_video_ids"]) == (["v0", "v1"], [])
    assert (now[2]["entered_video_ids"], now[2]["left_video_ids"]) == (["v3"], ["v1"])
    assert done == Done(130, "", "")


@pytest.mark.usefixtures("interruptible")
async def test_a_change_is_shown_when_it_comes(server: Server) -> None:
    server.faults.pause_s = 100
    lines, done = await _watched(server, 3)
    assert lines[-1].split() == ["2", "v1", "2.5"]
    assert done == Done(130, "", "")


# -- interactions ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["like", "save", "view", "share", "skip"])
async def test_each_interaction_is_recorded(server: Server, kind: str) -> None:
    done = await run_keek(server.target, kind, "u1", "v3", "--region", "KZ")
    [stored] = server.interactions.stored.values()
    assert (stored.user_id, stored.video_id, stored.region) == ("u1", "v3", "KZ")
    assert stored.kind == keek.InteractionKind.Value(f"INTERACTION_KIND_{kind.upper()}")
    assert done.out == f"{kind} of v3 recorded ({stored.event_id})\n"


@pytest.mark.parametrize("kind", ["view", "skip"])
async def test_how_long_a_video_was_watched_is_said_of_views_and_skips(server: Server, kind: str) -> None:
    done = await run_keek(server.target, kind, "u1", "v3", "--watched-s", "12.5")
    [stored] = server.interactions.stored.values()
    assert (done.code, stored.watched.ToJsonString()) == (0, "12.500s")
    refused = await run_keek(server.target, "like", "u1", "v3", "--watched-s", "12.5")
    assert refused.code == 2
    assert "--watched-s" in refused.err


async def test_an_interaction_repeated_with_its_event_id_is_recorded_once(server: Server) -> None:
    event_id = str(uuid.uuid4())
    arguments = ["like", "u1", "v3", "--event-id", event_id, "--wait-for-feed", "--json"]
    first, again = await run_keek(server.target, *arguments), await run_keek(server.target, *arguments)
    assert first.json == [{"event_id": event_id, "created": True, "in_feed": True}]
    assert again.json == [{"event_id": event_id, "created": False, "in_feed": True}]


# -- failures -------------------------------------------------------------------------------------
async def test_an_unknown_video_is_one_line_and_exit_code_1(server: Server) -> None:
    done = await run_keek(server.target, "like", "u1", "none")
    assert done == Done(1, "", "keek: NOT_FOUND: no video 'none'\n")


async def test_violations_are_listed_on_the_line(server: Server) -> None:
    details = [bad_request(user_id="must not be empty", page_size="must be at most 100")]
    server.faults.add("ListFeed", Fault(grpc.StatusCode.INVALID_ARGUMENT, "bad request", details))
    done = await run_keek(server.target, "feed", "")
    assert done.code == 1
    assert done.err == "keek: INVALID_ARGUMENT: user_id: must not be empty; page_size: must be at most 100\n"


async def test_nobody_listening_is_said_with_the_target(unused_tcp_port: int) -> None:
    target = f"127.0.0.1:{unused_tcp_port}"
    done = await run_keek(None, "--target", target, "feed", "u1")
    assert done.code == 1
    assert done.err.startswith(
        f"keek: UNAVAILABLE: no server answers at {target} (--target or KEEK_TARGET): "
    )
    assert done.err.count("\n") == 1


async def test_a_server_that_is_down_in_part_says_when_to_come_back(server: Server) -> None:
    down = Fault(grpc.StatusCode.UNAVAILABLE, "Triton is away", [error_info("TRITON_AWAY"), retry_info(0.5)])
    server.faults.add("ListFeed", *[down] * 5)
    done = await run_keek(server.target, "feed", "u1")
    assert done == Done(1, "", "keek: UNAVAILABLE: Triton is away; try again in 0.5 s\n")


async def test_a_late_server_is_given_up_after_timeout_s(server: Server) -> None:
    server.faults.add("ListFeed", Fault(delay_s=30))
    done = await run_keek(server.target, "--timeout-s", "0.3", "feed", "u1")
    assert done.code == 1
    expected = (
        f"keek: DEADLINE_EXCEEDED: no answer from {server.target} in time; --timeout-s gives it longer\n"
    )
    assert done.err == expected


async def test_an_option_behind_the_command_wins_over_one_before_it(
    server: Server, unused_tcp_port: int
) -> None:
    away = f"127.0.0.1:{unused_tcp_port}"
    done = await run_keek(away, "--target", away, "trending", "--count", "1", "--target", server.target)
    assert done.code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["feed"],
        ["feed", "u1", "--count", "0"],
        ["feed", "u1", "--count", "99999999999"],
        ["feed", "u1", "--timeout-s", "nan"],
        ["feed", "u1", "--timeout-s", "-1"],
        ["dislike", "u1", "v1"],
        ["trending", "--tag", "cats", "--region", "KZ"],
        [b"feed", b"u\xff"],
    ],
)
async def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = await run_keek("127.0.0.1:1", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: keek")


async def test_the_version_is_shown() -> None:
    assert (await run_keek(None, "--version")).out == f"keek {keek.__version__}\n"


@pytest.mark.usefixtures("interruptible")
async def test_ctrl_c_ends_without_a_stack_trace(server: Server) -> None:
    server.faults.add("ListFeed", Fault(delay_s=30))
    process = await start(server.target, "feed", "u1", "--timeout-s", "60")
    await eventually(lambda: server.faults.attempts["ListFeed"] == 1)
    process.send_signal(signal.SIGINT)
    assert await finish(process) == Done(130, "", "")


@pytest.mark.usefixtures("interruptible")
async def test_ctrl_c_ends_a_stream_without_a_stack_trace(server: Server) -> None:
    server.faults.pause_s = 100
    process = await start(server.target, "feed", "u1", "--count", "20", "--page-size", "5", "--stream")
    assert process.stdout is not None
    async with asyncio.timeout(60):
        await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    done = await finish(process)
    assert (done.code, done.err) == (130, "")


async def test_a_reader_that_has_enough_ends_the_program_quietly(server: Server) -> None:
    server.videos.stored = {f"n{n:05}": keek.Video(video_id=f"n{n:05}") for n in range(20_000)}
    reader, writer = os.pipe()
    process = await start(server.target, "videos", stdout=writer)
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 5) == b"VIDEO"
    os.close(reader)
    done = await finish(process)
    assert (done.code, done.err) == (141, "")


@pytest.mark.parametrize("arguments", [["explain", "u1", "v7"], ["feed", "u1"], ["like", "u1", "v1"]])
async def test_output_that_cannot_be_written_is_said_once(server: Server, arguments: list[str]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    done = await finish(await start(server.target, *arguments, stdout=full))
    silent = await finish(await start(server.target, *arguments, stdout=full, stderr=full))
    os.close(full)
    assert (done.code, done.err) == (1, "keek: [Errno 28] No space left on device\n")
    assert silent.code == 1


@pytest.mark.parametrize("arguments", [["explain", "u1", "v7"], ["feed", "u1"], ["like", "u1", "v1"]])
async def test_a_reader_that_has_gone_before_the_answer_ends_the_program_quietly(
    server: Server, arguments: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = await start(server.target, *arguments, stdout=writer)
    os.close(writer)
    done = await finish(process)
    assert (done.code, done.err) == (141, "")
