"""The command line `keek`, run as a program against a real server."""

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from client_server import CORPUS, Fault, Server, bad_request, error_info, retry_info, serve, until

import keek
from keek.v1.trending_service_pb2 import ListTrendingRequest, TrendingRanking, WatchTrendingRequest

KEEK = Path(sys.executable).with_name("keek")


@dataclass(frozen=True, slots=True)
class Done:
    """A program that has ended."""

    code: int | None
    out: str
    err: str

    @property
    def lines(self) -> list[list[str]]:
        """The words of each line of stdout."""
        return [line.split() for line in self.out.splitlines()]

    @property
    def json(self) -> list[Any]:
        """The objects on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Programs started now can be interrupted, also where the tests run as a background job.

    Shells have those ignore SIGINT, which is handed down to every program they start.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


async def _start(target: str | None, *arguments: str, **streams: int) -> asyncio.subprocess.Process:
    # Output is buffered as it is by default.
    unset = {"KEEK_TARGET", "PYTHONUNBUFFERED"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    if target is not None:
        environment["KEEK_TARGET"] = target
    piped = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.PIPE, **streams}
    return await asyncio.create_subprocess_exec(KEEK, *arguments, env=environment, **piped)  # type: ignore[arg-type]


async def _finish(process: asyncio.subprocess.Process) -> Done:
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return Done(process.returncode, (out or b"").decode(), (err or b"").decode())


async def _keek(target: str | None, *arguments: str) -> Done:
    return await _finish(await _start(target, *arguments))


# -- feeds and trending ---------------------------------------------------------------------------
@pytest.mark.parametrize("stream", [(), ("--stream",)])
async def test_feed_shows_as_many_items_as_asked_for(server: Server, stream: Sequence[str]) -> None:
    done = await _keek(server.target, "feed", "u1", "--count", "12", "--page-size", "5", *stream)
    assert (done.code, done.err) == (0, "")
    assert done.lines[0] == ["#", "VIDEO", "SOURCE", "SCORE", "RELEASE", "ARM"]
    assert done.lines[1] == ["1", "v0", "personalised", "0.5", "r1"]
    assert [line[1] for line in done.lines[1:]] == CORPUS[:12]
    assert len({line.index("personalised") for line in done.out.splitlines()[1:]}) == 1


@pytest.mark.parametrize("stream", [(), ("--stream",)])
async def test_feed_ends_where_the_corpus_ends(server: Server, stream: Sequence[str]) -> None:
    done = await _keek(server.target, "feed", "u1", "--count", "60", *stream)
    assert [line[1] for line in done.lines[1:]] == CORPUS


async def test_feed_streams_in_one_call_and_lists_in_several(server: Server) -> None:
    await _keek(server.target, "feed", "u1", "--count", "12", "--page-size", "5", "--stream")
    await _keek(server.target, "feed", "u1", "--count", "12", "--page-size", "5")
    assert server.faults.attempts["StreamFeed"] == 1
    sizes = [request.page_size for request in server.faults.requests["ListFeed"]]  # type: ignore[attr-defined]
    assert sizes == [5, 5, 2]


@pytest.mark.parametrize("stream", [(), ("--stream",)])
async def test_feed_as_json_is_one_response_a_line(server: Server, stream: Sequence[str]) -> None:
    done = await _keek(server.target, "--json", "feed", "u1", "--count", "12", "--page-size", "5", *stream)
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
    server.faults.pause_s = 30
    arguments = ["feed", "u1", "--count", "4", "--page-size", "2", "--stream", *options]
    process = await _start(server.target, *arguments)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            seen = [await process.stdout.readline() for _ in range(line_count)]
    finally:
        process.terminate()
        await _finish(process)
    assert b"v1" in seen[-1]
    assert b"v2" not in seen[-1]


async def test_what_is_degraded_is_said_beside_the_feed(server: Server) -> None:
    done = await _keek(server.target, "feed", "degraded")
    assert len(done.lines) == 11
    assert done.err == "degraded: personalised: deadline of 80 ms exceeded; replaced by trending\n"


async def test_explain_shows_every_stage_and_a_verdict_for_each_video(server: Server) -> None:
    done = await _keek(server.target, "explain", "u1", "v7", "v9")
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
    [answer] = (await _keek(server.target, "explain", "u1", "v7", "--json")).json
    assert answer["verdicts"][0]["stage"] == "seen"


async def test_trending_lists_as_many_as_asked_for(server: Server) -> None:
    done = await _keek(server.target, "trending", "--count", "3")
    assert done.lines == [
        ["#", "VIDEO", "SCORE"],
        ["1", "v0", "2.5"],
        ["2", "v1", "2.5"],
        ["3", "v2", "2.5"],
    ]
    assert [video["video_id"] for video in (await _keek(server.target, "trending", "--json")).json] == CORPUS[
        :10
    ]


@pytest.mark.parametrize("scope", [{"tag": "cats"}, {"region": "KZ"}])
async def test_trending_can_be_rising_and_of_one_tag_or_region(server: Server, scope: dict[str, str]) -> None:
    [(name, value)] = scope.items()
    done = await _keek(server.target, "trending", "--rising", f"--{name}", value)
    assert (done.code, done.err) == (0, "")
    expected = ListTrendingRequest(page_size=10, ranking=TrendingRanking.TRENDING_RANKING_RISING, **scope)
    assert server.faults.requests["ListTrending"] == [expected]


async def _watched(server: Server, line_count: int, *options: str) -> tuple[list[str], Done]:
    """The first lines that a watch prints, and its end by Ctrl-C."""
    process = await _start(server.target, "trending", "--watch", "--count", "2", *options)
    assert process.stdout is not None
    async with asyncio.timeout(20):
        lines = [(await process.stdout.readline()).decode() for _ in range(line_count)]
    process.send_signal(signal.SIGINT)
    return lines, await _finish(process)


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
    await until(lambda: server.faults.cancelled == ["WatchTrending"])


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
    server.faults.pause_s = 30
    lines, done = await _watched(server, 3)
    assert lines[-1].split() == ["2", "v1", "2.5"]
    assert done == Done(130, "", "")


# -- interactions ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["like", "save", "view", "share", "skip"])
async def test_each_interaction_is_recorded(server: Server, kind: str) -> None:
    done = await _keek(server.target, kind, "u1", "v3", "--region", "KZ")
    [stored] = server.interactions.stored.values()
    assert (stored.user_id, stored.video_id, stored.region) == ("u1", "v3", "KZ")
    assert stored.kind == keek.InteractionKind.Value(f"INTERACTION_KIND_{kind.upper()}")
    assert done.out == f"{kind} of v3 recorded ({stored.event_id})\n"


async def test_an_interaction_repeated_with_its_event_id_is_recorded_once(server: Server) -> None:
    event_id = str(uuid.uuid4())
    arguments = ["like", "u1", "v3", "--event-id", event_id, "--wait-for-feed", "--json"]
    first, again = await _keek(server.target, *arguments), await _keek(server.target, *arguments)
    assert first.json == [{"event_id": event_id, "created": True, "in_feed": True}]
    assert again.json == [{"event_id": event_id, "created": False, "in_feed": True}]


# -- videos ---------------------------------------------------------------------------------------
async def test_import_takes_the_good_lines_and_reports_the_others(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "videos.csv"
    lines = [f"n{n},a|b,{n}.5,o{n % 2}" for n in range(1200)]
    lines[3] = "n3,a,long,o1"  # read by nobody
    lines[5] = "n5,a,100000,o1"  # refused by the server
    lines[1100] = "n1100"
    file.write_text("video_id,tags,duration,owner\n" + "\n".join(lines) + "\n")
    done = await _keek(server.target, "import", str(file))
    assert done.code == 1
    assert sorted(done.err.splitlines()) == [
        f"{file}:1102: 1 columns where 4 are expected",
        f"{file}:5: duration 'long' is not a number of seconds",
        f"{file}:7: duration_s: must be at most 86400",
    ]
    assert done.out == "1197 videos imported (1197 new, 0 replaced), 3 lines left out\n"
    assert set(server.videos.stored) == {f"n{n}" for n in range(1200)} - {"n3", "n5", "n1100"}
    assert server.videos.stored["n1199"] == keek.Video(
        video_id="n1199", tags=["a", "b"], duration_s=1199.5, owner_id="o1"
    )


async def test_import_of_a_good_file_succeeds_and_counts_what_it_replaces(
    server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "videos.csv"
    file.write_text("video_id\nn1\nn2\n")
    first = await _keek(server.target, "import", str(file))
    assert (first.code, first.out) == (0, "2 videos imported (2 new, 0 replaced), 0 lines left out\n")
    file.write_text("video_id\nn2\nn3\n")
    again = await _keek(server.target, "import", str(file), "--json")
    assert again.json == [{"created_count": 1, "updated_count": 1, "malformed_count": 0}]


async def test_import_says_what_was_taken_before_the_server_failed(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "videos.csv"
    file.write_text("video_id\n" + "".join(f"n{n}\n" for n in range(1500)))
    server.faults.add("ImportVideos", Fault(), Fault(grpc.StatusCode.INTERNAL, "disk full"))
    done = await _keek(server.target, "import", str(file))
    assert (done.code, done.err) == (1, "keek: INTERNAL: disk full\n")
    assert done.out == "1000 videos imported (1000 new, 0 replaced), 0 lines left out\n"


async def test_import_of_a_missing_file_says_so(server: Server, tmp_path: Path) -> None:
    done = await _keek(server.target, "import", str(tmp_path / "none.csv"))
    assert (done.code, done.err) == (1, f"keek: {tmp_path}/none.csv: No such file or directory\n")


async def test_videos_and_video_show_the_catalogue(server: Server) -> None:
    video = keek.Video(video_id="n1", owner_id="o1", tags=["a", "b"], duration_s=12.5, title="One\x1b[2J")
    video.create_time.FromJsonString("2024-05-01T08:00:00Z")
    server.videos.stored = {"n0": keek.Video(video_id="n0"), "n1": video}
    listed = await _keek(server.target, "videos", "--owner", "o1")
    assert listed.lines == [
        ["VIDEO", "OWNER", "SECONDS", "CREATED", "TAGS", "TITLE"],
        ["n1", "o1", "12.5", "2024-05-01T08:00:00Z", "a", "b", "One\N{REPLACEMENT CHARACTER}[2J"],
    ]
    everything = await _keek(server.target, "videos", "--json")
    assert [found["video_id"] for found in everything.json] == ["n0", "n1"]
    one = await _keek(server.target, "video", "n1")
    assert ["owner", "o1"] in one.lines
    [found] = (await _keek(server.target, "video", "n1", "--json")).json
    assert (found["video_id"], found["duration_s"]) == ("n1", 12.5)


# -- failures -------------------------------------------------------------------------------------
async def test_an_unknown_video_is_one_line_and_exit_code_1(server: Server) -> None:
    done = await _keek(server.target, "like", "u1", "none")
    assert done == Done(1, "", "keek: NOT_FOUND: no video 'none'\n")


async def test_violations_are_listed_on_the_line(server: Server) -> None:
    details = [bad_request(user_id="must not be empty", page_size="must be at most 100")]
    server.faults.add("ListFeed", Fault(grpc.StatusCode.INVALID_ARGUMENT, "bad request", details))
    done = await _keek(server.target, "feed", "")
    assert done.code == 1
    assert done.err == "keek: INVALID_ARGUMENT: user_id: must not be empty; page_size: must be at most 100\n"


async def test_nobody_listening_is_said_with_the_target(unused_tcp_port: int) -> None:
    target = f"127.0.0.1:{unused_tcp_port}"
    done = await _keek(None, "--target", target, "feed", "u1")
    assert done.code == 1
    assert done.err.startswith(
        f"keek: UNAVAILABLE: no server answers at {target} (--target or KEEK_TARGET): "
    )
    assert done.err.count("\n") == 1


async def test_a_server_that_is_down_in_part_says_when_to_come_back(server: Server) -> None:
    down = Fault(grpc.StatusCode.UNAVAILABLE, "Triton is away", [error_info("TRITON_AWAY"), retry_info(0.5)])
    server.faults.add("ListFeed", *[down] * 5)
    done = await _keek(server.target, "feed", "u1")
    assert done == Done(1, "", "keek: UNAVAILABLE: Triton is away; try again in 0.5 s\n")


async def test_a_late_server_is_given_up_after_timeout_s(server: Server) -> None:
    server.faults.add("ListFeed", Fault(delay_s=30))
    done = await _keek(server.target, "--timeout-s", "0.3", "feed", "u1")
    assert done.code == 1
    expected = (
        f"keek: DEADLINE_EXCEEDED: no answer from {server.target} in time; --timeout-s gives it longer\n"
    )
    assert done.err == expected


async def test_an_option_behind_the_command_wins_over_one_before_it(
    server: Server, unused_tcp_port: int
) -> None:
    away = f"127.0.0.1:{unused_tcp_port}"
    done = await _keek(away, "--target", away, "trending", "--count", "1", "--target", server.target)
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
    done = await _keek("127.0.0.1:1", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: keek")


async def test_the_version_is_shown() -> None:
    assert (await _keek(None, "--version")).out == f"keek {keek.__version__}\n"


@pytest.mark.usefixtures("interruptible")
async def test_ctrl_c_ends_without_a_stack_trace(server: Server) -> None:
    server.faults.add("ListFeed", Fault(delay_s=30))
    process = await _start(server.target, "feed", "u1", "--timeout-s", "60")
    await until(lambda: server.faults.attempts["ListFeed"] == 1)
    process.send_signal(signal.SIGINT)
    assert await _finish(process) == Done(130, "", "")


@pytest.mark.usefixtures("interruptible")
async def test_ctrl_c_ends_a_stream_without_a_stack_trace(server: Server) -> None:
    server.faults.pause_s = 30
    process = await _start(server.target, "feed", "u1", "--count", "20", "--page-size", "5", "--stream")
    assert process.stdout is not None
    async with asyncio.timeout(20):
        await process.stdout.readline()
    process.send_signal(signal.SIGINT)
    done = await _finish(process)
    assert (done.code, done.err) == (130, "")


async def test_a_reader_that_has_enough_ends_the_program_quietly(server: Server) -> None:
    server.videos.stored = {f"n{n:05}": keek.Video(video_id=f"n{n:05}") for n in range(20_000)}
    reader, writer = os.pipe()
    process = await _start(server.target, "videos", stdout=writer)
    os.close(writer)
    assert await asyncio.to_thread(os.read, reader, 5) == b"VIDEO"
    os.close(reader)
    done = await _finish(process)
    assert (done.code, done.err) == (141, "")


@pytest.mark.parametrize("arguments", [["explain", "u1", "v7"], ["feed", "u1"], ["like", "u1", "v1"]])
async def test_a_reader_that_has_gone_before_the_answer_ends_the_program_quietly(
    server: Server, arguments: list[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = await _start(server.target, *arguments, stdout=writer)
    os.close(writer)
    done = await _finish(process)
    assert (done.code, done.err) == (141, "")
