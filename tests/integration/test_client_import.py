"""`keek videos import` of a table, run as a program: cut off, gone on with, refused in part."""

import csv
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from client_program import finish, interruptible_programs, run_import, run_keek, start, state_file
from client_server import BAD_FILE, Fault, Server, serve
from patience import eventually

import keek
from keek.uploads import CHUNK_BYTES

REFUSED_S = 100_000
"""A duration that the server does not take."""


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


def _sent(server: Server) -> list[str]:
    """The video_ids of all imports that arrived, in order, more than once or not."""
    requests: list[Any] = server.faults.requests["ImportVideos"]
    return [video.video_id for request in requests for video in request.videos]


def _rows(path: Path, count: int) -> list[str]:
    """Writes a CSV of good lines; gives the video_ids."""
    ids = [f"n{n:05}" for n in range(count)]
    path.write_text("video_id,tags\n" + "".join(f"{name},a|b\n" for name in ids))
    return ids


# -- tables ---------------------------------------------------------------------------------------
async def test_the_good_lines_are_imported_and_the_others_reported(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "videos.csv"
    lines = [f"n{n},a|b,{n}.5,o{n % 2}" for n in range(1200)]
    lines[3] = "n3,a,long,o1"  # read by nobody
    lines[5] = f"n5,a,{REFUSED_S},o1"  # refused by the server
    lines[1100] = "n1100"
    file.write_text("video_id,tags,duration,owner\n" + "\n".join(lines) + "\n")
    done = await run_import(server, file)
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
    assert not state_file(file).exists()


@pytest.mark.parametrize(
    ("column", "cell", "reason"),
    [
        ("create_time", "0001-01-01T00:00:00+01:00", "is outside the years 1 to 9999 in UTC"),
        ("tags", "[" * 2000, "are not a JSON list of strings"),
        ("tags", r'["\ud800"]', "are not a JSON list of strings"),
    ],
    ids=["before year 1", "nested too deep", "half a character"],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
async def test_a_cell_that_cannot_be_a_value_leaves_out_its_own_line_alone(
    server: Server, tmp_path: Path, kind: str, column: str, cell: str, reason: str
) -> None:
    file, ids, cells = tmp_path / f"videos.{kind}", ["n1", "n2", "n3"], ["", cell, ""]
    if kind == "parquet":
        pq.write_table(pa.table({"video_id": ids, column: cells}), file)
    else:
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([("video_id", column), *zip(ids, cells, strict=True)])
    done = await run_import(server, file)
    line = 2 if kind == "parquet" else 3
    assert (done.code, done.err) == (1, f"{file}:{line}: {column} {cell!r} {reason}\n")
    assert done.out == "2 videos imported (2 new, 0 replaced), 1 lines left out\n"
    assert set(server.videos.stored) == {"n1", "n3"}


async def test_a_good_file_is_exit_code_0_and_what_it_replaces_is_counted(
    server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "videos.csv"
    file.write_text("video_id\nn1\nn2\n")
    first = await run_import(server, file)
    assert (first.code, first.out) == (0, "2 videos imported (2 new, 0 replaced), 0 lines left out\n")
    file.write_text("video_id\nn2\nn3\n")
    again = await run_import(server, file, "--json")
    assert again.json == [
        {
            "created_count": 1,
            "updated_count": 1,
            "uploaded_count": 0,
            "unchanged_count": 0,
            "unverified_count": 0,
            "refused_count": 0,
        }
    ]


async def test_what_was_taken_before_the_server_failed_is_said_and_not_sent_again(
    server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "videos.csv"
    ids = _rows(file, 1500)
    server.faults.add("ImportVideos", Fault(), Fault(grpc.StatusCode.INTERNAL, "disk full"))
    done = await run_import(server, file, "--jobs", "1")
    assert (done.code, done.err) == (1, "keek: INTERNAL: disk full\n")
    assert done.out == (
        "1000 videos imported (1000 new, 0 replaced), 0 lines left out; "
        "not complete: the same command goes on\n"
    )
    server.faults.requests.clear()
    again = await run_import(server, file)
    assert (again.code, again.out) == (0, "1500 videos imported (1500 new, 0 replaced), 0 lines left out\n")
    assert "goes on where" in again.err
    assert sorted(_sent(server)) == ids[1000:]


async def test_a_missing_file_is_said(server: Server, tmp_path: Path) -> None:
    done = await run_import(server, tmp_path / "none.csv")
    assert (done.code, done.err) == (1, f"keek: {tmp_path}/none.csv: No such file or directory\n")


async def test_batches_are_sent_side_by_side(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "videos.csv"
    ids = _rows(file, 8000)
    server.faults.gate.clear()
    process = await start(server.target, "videos", "import", str(file), "--jobs", "8")
    # None is answered before all have arrived.
    await eventually(lambda: server.faults.attempts["ImportVideos"] == 8)
    server.faults.gate.set()
    assert (await finish(process)).code == 0
    server.videos.most_importing, server.videos.import_delay_s = 0, 0.1
    assert (await run_import(server, file, "--jobs", "1")).code == 0
    assert server.videos.most_importing == 1
    assert sorted(_sent(server)) == sorted(ids * 2)


async def test_an_import_that_was_killed_goes_on_with_what_was_not_acknowledged(
    server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "videos.csv"
    ids = _rows(file, 20_000)
    # Side by side, and not in order: the first batch is not answered before the end, which cannot come.
    server.faults.add("ImportVideos", Fault(delay_s=60))
    server.videos.import_delay_s = 0.15
    process = await start(server.target, "videos", "import", str(file))
    await eventually(lambda: len(server.videos.stored) >= 6000)
    process.kill()
    await process.wait()
    stored = set(server.videos.stored)
    assert state_file(file).exists()
    assert len(stored) < 20_000

    server.videos.import_delay_s = 0.0
    server.faults.requests.clear()
    done = await run_import(server, file)
    assert (done.code, done.out.startswith("20000 videos imported")) == (0, True)
    assert set(server.videos.stored) == set(ids)
    again = set(_sent(server))
    assert set(ids) - stored <= again
    # At most what was under way was sent twice: a batch a job, and one whose acknowledgement was read.
    assert len(again & stored) <= 5000
    assert not state_file(file).exists()


async def test_a_state_file_that_a_crash_cut_short_is_read_up_to_there(
    server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "videos.csv"
    ids = _rows(file, 3000)
    server.faults.add("ImportVideos", Fault(), Fault(), Fault(grpc.StatusCode.INTERNAL))
    await run_import(server, file, "--jobs", "1")
    with state_file(file).open("ab") as state:
        state.write(b'{"lines": [[2, 30')
    server.faults.add("ImportVideos", Fault(grpc.StatusCode.INTERNAL))
    await run_import(server, file, "--jobs", "1")
    server.faults.requests.clear()
    assert (await run_import(server, file)).code == 0
    assert sorted(_sent(server)) == ids[2000:]


@pytest.mark.parametrize("damage", [b"\0" * 64 + b"\n", b"null\n", b'{"counts": {"x": 1}}\n'])
async def test_a_state_file_that_is_damaged_is_read_up_to_there(
    server: Server, tmp_path: Path, damage: bytes
) -> None:
    file = tmp_path / "videos.csv"
    ids = _rows(file, 3000)
    server.faults.add("ImportVideos", Fault(), Fault(), Fault(grpc.StatusCode.INTERNAL))
    await run_import(server, file, "--jobs", "1")
    lines = state_file(file).read_bytes().splitlines(keepends=True)
    state_file(file).write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    server.faults.requests.clear()
    done = await run_import(server, file)
    assert (done.code, done.out) == (0, "3000 videos imported (2000 new, 1000 replaced), 0 lines left out\n")
    assert "was damaged" in done.err
    assert sorted(_sent(server)) == ids[1000:]


@pytest.mark.parametrize("change", ["content", "time", "restart", "server", "clip model"])
async def test_the_state_of_another_import_is_not_trusted(
    server: Server, tmp_path: Path, change: str
) -> None:
    file = tmp_path / "videos.csv"
    ids = _rows(file, 1500)
    server.faults.add("ImportVideos", Fault(), Fault(grpc.StatusCode.INTERNAL))
    await run_import(server, file, "--jobs", "1")
    assert state_file(file).exists()
    options: list[str] = []
    if change == "content":
        ids = _rows(file, 1501)
    elif change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "restart":
        options = ["--restart"]
    elif change == "clip model":
        options = ["--clip-model", "other"]
    async with serve() as other:
        target = other if change == "server" else server
        target.faults.requests.clear()
        done = await run_import(target, file, *options)
        assert done.code == 0
        assert sorted(_sent(target)) == ids
    assert ("everything is imported" in done.err) is (change != "restart")


async def test_lines_that_were_left_out_before_still_make_the_exit_code_1(
    server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "videos.csv"
    ids = [f"n{n}" for n in range(1500)]
    file.write_text("video_id,tags\nbad\n" + "".join(f"{name},a\n" for name in ids))
    server.faults.add("ImportVideos", Fault(), Fault(grpc.StatusCode.INTERNAL))
    await run_import(server, file, "--jobs", "1")
    done = await run_import(server, file)
    assert (done.code, done.out) == (1, "1500 videos imported (1500 new, 0 replaced), 1 lines left out\n")


async def test_ctrl_c_leaves_the_state_and_ends_soon(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "videos.csv"
    ids = _rows(file, 4000)
    server.faults.add("ImportVideos", Fault(), *[Fault(delay_s=60)] * 8)
    with interruptible_programs():
        process = await start(server.target, "videos", "import", str(file), "--jobs", "2")
    await eventually(lambda: server.faults.attempts["ImportVideos"] == 3)
    # Of the two that were sent side by side, the one that came first.
    taken = set(server.videos.stored)
    process.send_signal(signal.SIGINT)
    done = await finish(process)
    assert (done.code, done.err) == (130, "")
    assert done.out.startswith("1000 videos imported")
    server.faults.queued.clear()
    server.faults.requests.clear()
    assert (await run_import(server, file)).code == 0
    assert (len(_sent(server)), set(_sent(server))) == (3000, set(ids) - taken)


async def test_a_folder_that_cannot_be_written_to_is_no_obstacle(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "videos.csv"
    _rows(file, 3)
    # Also root cannot make a file where a folder is.
    state_file(file).mkdir()
    done = await run_import(server, file)
    assert done.code == 0
    assert "will begin anew" in done.err
    assert len(server.videos.stored) == 3


async def test_lines_with_a_file_are_uploaded_with_their_metadata(server: Server, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"A" * CHUNK_BYTES * 2)
    (tmp_path / "clips" / "bad.mp4").write_bytes(BAD_FILE)
    file = tmp_path / "videos.csv"
    rows = ["n1,cats,One,clips/a.mp4", "n2,dogs,Two,", "n3,,,clips/bad.mp4", "n4,,,none.mp4", "n5,,,../x.mp4"]
    file.write_text("video_id,tags,title,file\n" + "\n".join(rows) + "\n")
    done = await run_import(server, file)
    assert done.code == 1
    assert done.out == (
        "1 videos imported (1 new, 0 replaced), 1 files uploaded, 0 there already, 3 lines left out\n"
    )
    assert sorted(done.err.splitlines()) == [
        f"{file}:4: clips/bad.mp4: TRUNCATED: the file ends too early",
        f"{file}:5: none.mp4: No such file or directory",
        f"{file}:6: ../x.mp4: is not below the folder of the table",
    ]
    assert server.videos.stored["n1"].title == "One"
    assert server.videos.stored["n1"].original_url
    assert server.videos.stored["n2"].title == "Two"
    # Again: the file is there, and its metadata is brought up to date.
    sent = server.faults.uploaded_bytes
    file.write_text("video_id,tags,title,file,language,region\nn1,birds,New,clips/a.mp4,pt-BR,BR\n")
    done = await run_import(server, file)
    assert "0 files uploaded, 1 there already, 0 lines left out" in done.out
    assert server.faults.uploaded_bytes == sent
    stored = server.videos.stored["n1"]
    assert (stored.title, list(stored.tags), stored.width) == ("New", ["birds"], 720)
    assert (stored.language, stored.region) == ("pt-BR", "BR")
    # A day later the server knows the video and its file, but not the upload any more.
    server.videos.uploads.clear()
    file.write_text("video_id,title,file\nn1,Newer,clips/a.mp4\n")
    done = await run_import(server, file)
    assert (done.code, done.err) == (0, "")
    assert "0 files uploaded, 1 there already (1 of them not compared" in done.out
    stored = server.videos.stored["n1"]
    assert (stored.title, stored.width) == ("Newer", 720)


# -- Parquet --------------------------------------------------------------------------------------
def _parquet(path: Path, count: int, **columns: Any) -> list[str]:
    ids = [f"n{n:05}" for n in range(count)]
    pq.write_table(pa.table({"video_id": ids, **columns}), path, row_group_size=700)
    return ids


async def test_a_parquet_table_with_clip_vectors_is_imported(server: Server, tmp_path: Path) -> None:
    file, count = tmp_path / "videos.parquet", 2500
    vectors = np.random.default_rng(0).standard_normal((count, 512)).astype(np.float32)
    ids = _parquet(
        file,
        count,
        clip_vector=pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 512),
        duration_s=[1.5] * (count - 1) + [float(REFUSED_S)],
    )
    done = await run_import(server, file, "--clip-model", "ViT-B-32")
    assert done.out == "2499 videos imported (2499 new, 0 replaced), 1 lines left out\n"
    assert done.err == f"{file}:2500: duration_s: must be at most 86400\n"
    assert set(server.videos.stored) == set(ids[:-1])
    requests: list[Any] = server.faults.requests["ImportVideos"]
    assert {request.clip_model for request in requests} == {"ViT-B-32"}
    sent = np.frombuffer(server.videos.stored[ids[1234]].clip_vector, "<f2").astype(np.float32)
    np.testing.assert_allclose(sent, vectors[1234] / np.linalg.norm(vectors[1234]), atol=2e-4)


async def test_a_parquet_import_that_was_killed_goes_on(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "videos.parquet"
    ids = _parquet(file, 12_000)
    server.faults.add("ImportVideos", Fault(delay_s=60))
    server.videos.import_delay_s = 0.2
    process = await start(server.target, "videos", "import", str(file))
    await eventually(lambda: len(server.videos.stored) >= 4000)
    process.kill()
    await process.wait()
    stored = set(server.videos.stored)
    server.faults.requests.clear()
    server.videos.import_delay_s = 0.0
    assert (await run_import(server, file)).code == 0
    assert set(server.videos.stored) == set(ids)
    assert set(ids) - stored <= set(_sent(server))
    assert len(set(_sent(server)) & stored) <= 5000


async def test_a_damaged_parquet_file_is_one_line(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "videos.parquet"
    file.write_bytes(b"PAR1 and nothing else that is Parquet")
    done = await run_import(server, file)
    assert done.code == 1
    assert done.err.startswith(f"keek: {file}: ")
    assert "Traceback" not in done.err


# -- usage ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options", [["--owner", "o1"], ["--tags", "a"], ["--language", "de"], ["--region", "AT"]]
)
async def test_options_of_a_folder_are_wrong_usage_for_a_table(
    server: Server, tmp_path: Path, options: list[str]
) -> None:
    file = tmp_path / "videos.csv"
    _rows(file, 1)
    assert (await run_import(server, file, *options)).code == 2
    assert not server.videos.stored


async def test_the_old_spelling_is_wrong_usage(server: Server) -> None:
    assert (await run_keek(server.target, "import", "videos.csv")).code == 2
