"""The commands of `keek` on videos and search, run as programs against a real server."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from client_program import finish, interruptible_programs, run_keek, start
from client_server import BAD_FILE, CORPUS, PART_BYTES, Fault, Server, error_info, serve
from patience import eventually

import keek
from keek.uploads import CHUNK_BYTES
from keek.v1.search_service_pb2 import SearchVideosRequest
from keek.v1.video_filter_pb2 import VideoFilter

UNTRAINED = "the CLIP of this release is untrained: its results mean nothing\n"


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(range(256)) * (CHUNK_BYTES * 4 // 256))
    return path


# -- the catalogue --------------------------------------------------------------------------------
async def test_videos_and_video_show_the_catalogue(server: Server) -> None:
    video = keek.Video(video_id="n1", owner_id="o1", tags=["a", "b"], duration_s=12.5, title="One\x1b[2J")
    video.language, video.region = "pt-BR", "BR"
    video.create_time.FromJsonString("2024-05-01T08:00:00Z")
    server.videos.stored = {"n0": keek.Video(video_id="n0"), "n1": video}
    listed = await run_keek(server.target, "videos", "--owner", "o1")
    assert listed.lines == [
        ["VIDEO", "OWNER", "SECONDS", "CREATED", "LANGUAGE", "REGION", "TAGS", "TITLE"],
        [
            "n1",
            "o1",
            "12.5",
            "2024-05-01T08:00:00Z",
            "pt-BR",
            "BR",
            "a",
            "b",
            "One\N{REPLACEMENT CHARACTER}[2J",
        ],
    ]
    everything = await run_keek(server.target, "videos", "--json")
    assert [found["video_id"] for found in everything.json] == ["n0", "n1"]
    one = await run_keek(server.target, "video", "n1")
    assert ["owner", "o1"] in one.lines
    assert ["language", "pt-BR"] in one.lines
    [found] = (await run_keek(server.target, "video", "n1", "--json")).json
    assert (found["video_id"], found["duration_s"]) == ("n1", 12.5)
    assert (found["language"], found["region"]) == ("pt-BR", "BR")


async def test_an_upload_shows_the_video(server: Server, file: Path) -> None:
    options = ["--id", "n1", "--owner", "o1", "--tags", "cats, dogs", "--title", "One"]
    options += ["--language", "pt-BR", "--region", "BR"]
    done = await run_keek(server.target, "upload", str(file), *options)
    assert (done.code, done.err) == (0, "")
    for words in (
        ["video", "n1"],
        ["tags", "cats", "dogs"],
        ["language", "pt-BR"],
        ["region", "BR"],
        ["state", "ready"],
        ["size", "720x1280"],
        ["file", "file:///n1"],
    ):
        assert words in done.lines
    assert server.videos.stored["n1"].owner_id == "o1"


async def test_an_upload_that_is_waited_for_shows_its_states(server: Server, file: Path) -> None:
    done = await run_keek(server.target, "upload", str(file), "--wait", "--json")
    assert (done.code, done.err) == (0, "decoding\nembedding\nready\n")
    [found] = done.json
    assert found["state"] == "VIDEO_STATE_READY"
    assert found["video_id"] in server.videos.stored


async def test_an_upload_that_was_killed_goes_on_with_the_same_command(server: Server, file: Path) -> None:
    server.faults.hold_uploads_at = 2 * CHUNK_BYTES
    process = await start(server.target, "upload", str(file), "--id", "n1")
    await eventually(lambda: server.faults.uploaded_bytes == 2 * CHUNK_BYTES)
    process.kill()
    await process.wait()
    server.faults.hold_uploads_at = None
    assert (await run_keek(server.target, "upload", str(file), "--id", "n1")).code == 0
    headers: list[Any] = server.faults.requests["UploadVideo"]
    assert headers[-1].offset_bytes >= PART_BYTES
    assert len({header.upload_id for header in headers}) == 1


async def test_a_deleted_video_can_be_uploaded_again_by_hand(server: Server, file: Path) -> None:
    for _ in range(2):
        done = await run_keek(server.target, "upload", str(file), "--id", "n1")
        assert (done.code, list(server.videos.stored)) == (0, ["n1"])
        await run_keek(server.target, "delete", "n1")


async def test_a_bad_video_is_one_line_with_its_reason(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "bad.mp4"
    path.write_bytes(BAD_FILE)
    done = await run_keek(server.target, "upload", str(path))
    assert (done.code, done.err) == (1, "keek: TRUNCATED: the file ends too early\n")
    done = await run_keek(server.target, "upload", str(tmp_path / "none.mp4"))
    assert (done.code, done.err) == (1, f"keek: {tmp_path}/none.mp4: No such file or directory\n")


async def test_ctrl_c_ends_an_upload_without_a_stack_trace(server: Server, file: Path) -> None:
    server.faults.pause_s = 60
    with interruptible_programs():
        process = await start(server.target, "upload", str(file))
    await eventually(lambda: server.faults.uploaded_bytes > 0)
    process.send_signal(signal.SIGINT)
    done = await finish(process)
    assert (done.code, done.err) == (130, "")


async def test_update_changes_what_its_options_name(server: Server) -> None:
    server.videos.stored = {"n1": keek.Video(video_id="n1", title="One", owner_id="o1", tags=["a"])}
    done = await run_keek(server.target, "update", "n1", "--title", "Two", "--tags", "", "--duration-s", "3")
    assert ["title", "Two"] in done.lines
    assert server.videos.stored["n1"] == keek.Video(video_id="n1", title="Two", owner_id="o1", duration_s=3.0)
    await run_keek(server.target, "update", "n1", "--language", "de", "--region", "AT", "--duration-s", "0")
    assert server.videos.stored["n1"] == keek.Video(
        video_id="n1", title="Two", owner_id="o1", language="de", region="AT"
    )
    nothing = await run_keek(server.target, "update", "n1")
    assert (nothing.code, nothing.out) == (2, "")


async def test_delete_removes_a_video(server: Server) -> None:
    server.videos.stored = {"n1": keek.Video(video_id="n1"), "n2": keek.Video(video_id="n2")}
    assert (await run_keek(server.target, "delete", "n1")).out == "n1 deleted\n"
    assert (await run_keek(server.target, "delete", "n2", "--json")).json == [{"video_id": "n2"}]
    done = await run_keek(server.target, "delete", "n1")
    assert (done.code, done.err) == (1, "keek: NOT_FOUND: no video 'n1'\n")


# -- search ---------------------------------------------------------------------------------------
async def test_search_lists_as_many_as_asked_for(server: Server) -> None:
    done = await run_keek(server.target, "search", "a cat", "--count", "2")
    assert (done.code, done.err) == (0, "")
    assert done.lines == [["#", "VIDEO", "SCORE"], ["1", "v0", "0.25"], ["2", "v1", "0.25"]]
    server.search.ids = [f"n{n}" for n in range(250)]
    done = await run_keek(server.target, "search", "a cat", "--count", "230")
    assert [line[1] for line in done.lines[1:]] == server.search.ids[:230]
    assert [line[0] for line in done.lines[1:]] == [str(n) for n in range(1, 231)]
    requests: list[Any] = server.faults.requests["SearchVideos"]
    assert [request.page_size for request in requests] == [2, 100, 100, 30]


async def test_search_by_image_or_video_with_conditions(server: Server, tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(b"JPEG")
    conditions = ["--tags", "a,b", "--owner", "o1", "--min-duration-s", "1", "--max-duration-s", "9"]
    conditions += ["--languages", "pt, en-GB", "--regions", "BR"]
    await run_keek(server.target, "search", "--image", str(image), *conditions, "--max-age-s", "60")
    expected = VideoFilter(tags=["a", "b"], owner_id="o1", min_duration_s=1, max_duration_s=9, max_age_s=60)
    expected.MergeFrom(VideoFilter(languages=["pt", "en-GB"], regions=["BR"]))
    done = await run_keek(server.target, "search", "--like", "v1", "--json")
    assert server.faults.requests["SearchVideos"] == [
        SearchVideosRequest(image=b"JPEG", filter=expected, page_size=20),
        SearchVideosRequest(video_id="v1", page_size=20),
    ]
    assert [video["video_id"] for video in done.json[0]["videos"]] == CORPUS[:20]


@pytest.mark.parametrize("options", [[], ["--json"]])
async def test_an_untrained_clip_is_said_once_beside_the_results(server: Server, options: list[str]) -> None:
    server.search.clip_untrained = True
    server.search.ids = [f"n{n}" for n in range(250)]
    done = await run_keek(server.target, "search", "a cat", "--count", "250", *options)
    assert (done.code, done.err) == (0, UNTRAINED)
    assert "untrained:" not in done.out


async def test_similar_videos_and_an_audience_are_tables(server: Server) -> None:
    similar = await run_keek(server.target, "similar", "v9", "--count", "1", "--owner", "o1")
    assert similar.lines == [["#", "VIDEO", "SCORE"], ["1", "v0", "0.25"]]
    audience = await run_keek(server.target, "audience", "v9", "--count", "2")
    assert audience.lines == [["#", "USER", "SCORE"], ["1", "u0", "1.5"], ["2", "u1", "1.5"]]
    [answer] = (await run_keek(server.target, "audience", "v9", "--json")).json
    assert answer["members"][1] == {"user_id": "u1", "score": 1.5}


async def test_a_release_without_clip_is_one_line(server: Server) -> None:
    fault = Fault(grpc.StatusCode.FAILED_PRECONDITION, "the release has no CLIP", [error_info("NO_CLIP")])
    server.faults.add("SearchVideos", fault)
    done = await run_keek(server.target, "search", "a cat")
    assert (done.code, done.err) == (1, "keek: FAILED_PRECONDITION: the release has no CLIP\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["search"],
        ["search", ""],
        ["search", "a cat", "--like", "v1"],
        ["search", "a cat", "--max-age-s", "nan"],
        ["upload"],
        ["videos", "export", "x"],
        ["videos", "import"],
        ["update", "v1", "--tags", "[1]"],
    ],
)
async def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = await run_keek("127.0.0.1:1", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: keek")
