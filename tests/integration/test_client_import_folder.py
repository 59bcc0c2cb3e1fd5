"""`keek videos import` of a folder, run as a program: every file below it, in parts if need be."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from client_program import Done, finish, interruptible_programs, run_import, run_keek, start, state_file
from client_server import BAD_FILE, Server, serve
from patience import eventually

from keek.uploads import CHUNK_BYTES


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


def _folder(path: Path, **sizes: int) -> Path:
    for name, size in sizes.items():
        file = path / (name.replace("__", "/") + ".mp4")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(size))
    return path


async def test_every_video_file_below_a_folder_is_uploaded_once(server: Server, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "clips", a=10, b__c=CHUNK_BYTES * 3)
    (folder / "d.WEBM").write_bytes(b"d")
    (folder / "notes.txt").write_text("no video")
    (folder / ".hidden.mp4").write_bytes(b"x")
    options = ["--owner", "o1", "--tags", "cats,dogs", "--language", "pt-BR", "--region", "BR"]
    done = await run_import(server, folder, *options)
    assert done == Done(0, "3 files uploaded, 0 there already, 0 files left out\n", "")
    assert set(server.videos.stored) == {"a", "b/c", "d"}
    stored = server.videos.stored["b/c"]
    assert (stored.owner_id, list(stored.tags)) == ("o1", ["cats", "dogs"])
    assert (stored.language, stored.region) == ("pt-BR", "BR")
    # Again, from elsewhere and at another time: nothing is sent.
    sent = server.faults.uploaded_bytes
    moved = folder.rename(tmp_path / "moved")
    os.utime(moved / "a.mp4", ns=(1, 1))
    again = await run_keek(server.target, "videos", "--owner", "o1", "import", str(moved), "--json")
    assert again.json[0] == {
        "created_count": 0,
        "updated_count": 0,
        "uploaded_count": 0,
        "unchanged_count": 3,
        "unverified_count": 0,
        "refused_count": 0,
    }
    assert server.faults.uploaded_bytes == sent


async def test_files_that_the_server_refuses_are_reported_and_the_others_uploaded(
    server: Server, tmp_path: Path
) -> None:
    folder = _folder(tmp_path / "clips", a=10, c=10)
    (folder / "b.mp4").write_bytes(BAD_FILE)
    (folder / "a.mov").write_bytes(b"another a")
    done = await run_import(server, folder)
    assert done.code == 1
    assert done.out == "2 files uploaded, 0 there already, 2 files left out\n"
    assert sorted(done.err.splitlines()) == [
        f"{folder}/a.mp4: its video_id 'a' is that of {folder}/a.mov",
        f"{folder}/b.mp4: TRUNCATED: the file ends too early",
    ]


async def test_a_video_that_has_a_file_counts_as_there_already_when_its_upload_is_not_known(
    server: Server, tmp_path: Path
) -> None:
    folder = _folder(tmp_path / "clips", a=10, b=10, c=10)
    await run_import(server, folder)
    stored = dict(server.videos.stored)
    # The server forgets uploads after a while; and one file is another one now.
    known = next(key for key, upload in server.videos.uploads.items() if upload.header.video.video_id == "a")
    server.videos.uploads = {known: server.videos.uploads[known]}
    _folder(folder, c=10)
    done = await run_import(server, folder)
    assert done == Done(
        0,
        "0 files uploaded, 3 there already (2 of them not compared: their videos have files), "
        "0 files left out\n",
        "",
    )
    assert server.videos.stored == stored
    again = await run_keek(server.target, "videos", "import", str(folder), "--json")
    assert (again.json[0]["unchanged_count"], again.json[0]["unverified_count"]) == (3, 2)


async def test_what_is_no_regular_file_is_reported_and_the_others_are_uploaded(
    server: Server, tmp_path: Path
) -> None:
    folder = _folder(tmp_path / "clips", a=10)
    (folder / "b.mp4").symlink_to("nothing")
    os.mkfifo(folder / "c.mp4")
    (folder / "d.flv").write_bytes(b"FLV\x01")
    done = await run_import(server, folder)
    assert (done.code, done.out) == (1, "1 files uploaded, 0 there already, 3 files left out\n")
    assert done.err.splitlines() == [
        f"{folder}/b.mp4: is a symbolic link, which is not followed",
        f"{folder}/c.mp4: is not a regular file",
        f"{folder}/d.flv: the server takes no .flv",
    ]
    assert set(server.videos.stored) == {"a"}


async def test_a_second_import_of_the_same_folder_at_once_says_so_and_sends_nothing(
    server: Server, tmp_path: Path
) -> None:
    folder = _folder(tmp_path / "clips", a=CHUNK_BYTES * 8)
    server.faults.hold_uploads_at = CHUNK_BYTES
    process = await start(server.target, "videos", "import", str(folder))
    await eventually(lambda: server.faults.uploaded_bytes > 0)
    second = await run_import(server, folder)
    assert (second.code, second.out) == (1, "")
    assert second.err == f"keek: {state_file(folder)} is in use: the same import runs already\n"
    server.faults.hold_uploads_at = None
    assert (await finish(process)).code == 0
    assert len(server.faults.requests["UploadVideo"]) == 1


async def test_a_video_that_was_deleted_stays_deleted(server: Server, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "clips", a=10, b=10)
    await run_import(server, folder)
    del server.videos.stored["a"]
    done = await run_import(server, folder)
    assert (done.code, done.out) == (1, "0 files uploaded, 1 there already, 1 files left out\n")
    assert done.err == f"{folder}/a.mp4: it was uploaded before, and the video was deleted\n"


async def test_a_folder_import_that_was_killed_goes_on_within_its_files(
    server: Server, tmp_path: Path
) -> None:
    size = 12 * CHUNK_BYTES
    folder = _folder(tmp_path / "clips", a=10, b=10, c=size, d=size)
    held_at = server.faults.hold_uploads_at = 5 * CHUNK_BYTES
    process = await start(server.target, "videos", "import", str(folder))

    def stand_still() -> set[str]:
        uploads = server.videos.uploads.values()
        return {own.header.video.video_id for own in uploads if len(own.content) >= held_at}

    await eventually(lambda: stand_still() == {"c", "d"} and {"a", "b"} <= set(server.videos.stored))
    process.kill()
    await process.wait()
    # The server has seen the calls end: of the parts that were not durable nothing is left.
    await eventually(lambda: not stand_still())
    assert not {"c", "d"} & set(server.videos.stored)
    server.faults.hold_uploads_at = None
    server.faults.requests.clear()
    done = await run_import(server, folder)
    assert done.code == 0
    assert set(server.videos.stored) == {"a", "b", "c", "d"}
    headers: list[Any] = server.faults.requests["UploadVideo"]
    assert {header.video.video_id for header in headers} == {"c", "d"}
    assert all(header.offset_bytes > 0 for header in headers)
    for upload in server.videos.uploads.values():
        path = folder / f"{upload.header.video.video_id}.mp4"
        assert bytes(upload.content) == await asyncio.to_thread(path.read_bytes)
    assert not state_file(folder).exists()


async def test_files_are_uploaded_side_by_side(server: Server, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "clips", **{f"v{n}": 3 for n in range(8)})
    server.faults.hold_uploads_at = 1
    process = await start(server.target, "videos", "import", str(folder), "--jobs", "8")
    # None is answered before all have arrived.
    await eventually(lambda: server.faults.uploaded_bytes == 8 * 3)
    server.faults.hold_uploads_at = None
    assert (await finish(process)).code == 0


async def test_ctrl_c_ends_uploads_soon(server: Server, tmp_path: Path) -> None:
    folder = _folder(tmp_path / "clips", a=CHUNK_BYTES * 20)
    server.faults.pause_s = 60
    with interruptible_programs():
        process = await start(server.target, "videos", "import", str(folder))
    await eventually(lambda: server.faults.uploaded_bytes > 0)
    process.send_signal(signal.SIGINT)
    done = await finish(process)
    assert (done.code, done.err) == (130, "")


async def test_a_server_that_is_away_ends_the_import(tmp_path: Path, unused_tcp_port: int) -> None:
    folder = _folder(tmp_path / "clips", a=10, b=10)
    done = await run_keek(f"127.0.0.1:{unused_tcp_port}", "videos", "import", str(folder))
    assert done.code == 1
    assert done.err.count("no server answers") == 1
