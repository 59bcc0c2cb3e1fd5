"""The CSV file that grows with the log: every line once, wherever its writer is killed."""

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from projecting import event

from keek_server.commands import add_export_arguments, run_export
from keek_server.errors import UnavailableError
from keek_server.interactions import csv_tail
from keek_server.interactions.csv_lines import CSV_HEADER
from keek_server.interactions.csv_tail import CsvTail
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.rows import LoggedInteraction
from keek_server.settings import Settings
from keek_server.storage.database import Database

PROGRAM = Path(__file__).with_name("csv_tail_process.py")
TIMEOUT_S = 60.0


class Killed(BaseException):
    """What stands for SIGKILL at one point of the code: nothing catches it, nothing is tidied up."""


@pytest.fixture
def log(database: Database) -> InteractionLog:
    return InteractionLog(database)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "interaction_log.csv"


@pytest.fixture
async def exported(settings: Settings, tmp_path: Path) -> Callable[[], Awaitable[str]]:
    """What the whole log looks like when it is exported."""

    async def export() -> str:
        parser = argparse.ArgumentParser()
        add_export_arguments(parser)
        out = tmp_path / "exported.csv"
        await run_export(parser.parse_args(["--out", str(out)]), settings)
        return out.read_text()

    return export


Exported = Callable[[], Awaitable[str]]


@asynccontextmanager
async def _tailing(log: InteractionLog, path: Path) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.create_task(CsvTail(log, path, poll_s=0.01).run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _grow(log: InteractionLog, count: int, *, first: int = 0) -> None:
    await log.append([event(f"u{i}", f"v,{i}") for i in range(first, first + count)])


async def _until(text: str, path: Path) -> None:
    """Waits until the file is what it should be, with its position written too."""
    async with asyncio.timeout(TIMEOUT_S):
        while _text(path) != text or _size(path) != len(text.encode()):
            await asyncio.sleep(0.01)


def _text(path: Path) -> str:
    """What is in the file; nothing when it is not there."""
    return path.read_text() if path.exists() else ""


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.position")


def _is_beside(path: Path, descriptor: int) -> bool:
    """Whether what is open is the folder or a file in it: others in this process write files, too."""
    opened = Path(f"/proc/self/fd/{descriptor}").readlink()
    return path.parent in (opened, opened.parent)


def _size(path: Path) -> int:
    return int(json.loads(_text(_sidecar(path)) or '{"size": -1}')["size"])


def _add(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def _move_away(path: Path) -> None:
    path.rename(path.with_name("old.csv"))


def _change_position(path: Path, change: dict[str, object]) -> None:
    sidecar = _sidecar(path)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **change}))


async def test_an_empty_log_is_a_header(log: InteractionLog, path: Path) -> None:
    async with _tailing(log, path):
        await _until(CSV_HEADER, path)


async def test_the_file_follows_the_log(
    log: InteractionLog, path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_tail, "_ROWS", 7)
    await _grow(log, 30)
    async with _tailing(log, path):
        await _until(await exported(), path)
        await _grow(log, 5, first=30)
        await _until(await exported(), path)
    await _grow(log, 5, first=35)
    async with _tailing(log, path):
        await _until(await exported(), path)
    assert (await exported()).count("\n") == 41


@pytest.mark.parametrize("crash_at", range(1, 14))
@pytest.mark.parametrize("before", [True, False])
async def test_a_crash_at_any_point_loses_no_line_and_doubles_none(
    log: InteractionLog,
    path: Path,
    exported: Exported,
    monkeypatch: pytest.MonkeyPatch,
    crash_at: int,
    before: bool,
) -> None:
    monkeypatch.setattr(csv_tail, "_ROWS", 4)
    await _grow(log, 10)
    count = 0
    real = {name: getattr(os, name) for name in ("fsync", "replace")}

    def crashing(name: str) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            nonlocal count
            if not threading.current_thread().name.startswith("csv-tail"):
                # Others in this process write files, too.
                real[name](*arguments)
                return
            count += 1
            if before and count == crash_at:
                raise Killed
            real[name](*arguments)
            if count == crash_at:
                raise Killed

        return call

    with monkeypatch.context() as patched:
        for name in real:
            patched.setattr(os, name, crashing(name))
        async with _tailing(log, path) as task:
            await asyncio.wait([task], timeout=TIMEOUT_S)
            assert isinstance(task.exception(), Killed)
    async with _tailing(log, path):
        await _until(await exported(), path)


@pytest.mark.parametrize(
    "rest", ["u1,v", "u10,v10,like,2026-01-01T00:00:00.000000Z\n", "\n\n", "x" * 100_000]
)
async def test_what_stands_behind_the_position_is_cut_off_at_once(
    log: InteractionLog, path: Path, exported: Exported, rest: str
) -> None:
    await _grow(log, 10)
    async with _tailing(log, path):
        await _until(await exported(), path)
    _add(path, rest)
    async with _tailing(log, path):
        await _until(await exported(), path)
        await _grow(log, 3, first=10)
        await _until(await exported(), path)


async def test_a_process_killed_again_and_again_while_the_log_grows(
    settings: Settings, log: InteractionLog, path: Path, exported: Exported
) -> None:
    await _grow(log, 1000)
    stop = asyncio.Event()

    async def grow() -> None:
        first = 1000
        while not stop.is_set():
            await _grow(log, 5, first=first)
            first += 5
            await asyncio.sleep(0.02)

    growing = asyncio.create_task(grow())
    chance = random.Random(4)
    for _ in range(4):
        size = len(_text(path))
        process = await _start(settings, path)
        async with asyncio.timeout(TIMEOUT_S):
            while len(_text(path)) <= size:
                await asyncio.sleep(0.001)
        await asyncio.sleep(chance.uniform(0.0, 0.1))
        process.kill()
        await process.wait()
        assert process.returncode == -9
    stop.set()
    await growing
    process = await _start(settings, path)
    await _until(await exported(), path)
    process.kill()
    await process.wait()
    lines = _text(path).splitlines()
    assert len(lines) == len(set(lines)) == (await log.extent()).last_seq + 1


async def _start(settings: Settings, path: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(PROGRAM), str(settings.data_dir), settings.database_url, str(path)),
        stderr=asyncio.subprocess.DEVNULL,
    )


async def test_of_two_tails_one_writes_and_the_other_takes_over(
    settings: Settings,
    log: InteractionLog,
    path: Path,
    exported: Exported,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(csv_tail, "_STAND_BY_S", 0.05)
    await _grow(log, 50)
    process = await _start(settings, path)
    await _until(await exported(), path)
    async with _tailing(log, path), _tailing(log, path):
        for first in range(50, 100, 10):
            await _grow(log, 10, first=first)
            await _until(await exported(), path)
        process.kill()
        await process.wait()
        await _grow(log, 10, first=100)
        await _until(await exported(), path)
    lines = _text(path).splitlines()
    assert len(lines) == len(set(lines)) == 111


async def test_a_file_that_nobody_knows_is_left_as_it_is(
    log: InteractionLog,
    path: Path,
    exported: Exported,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(csv_tail, "_REFUSED_S", 0.05)
    await _grow(log, 3)
    old = CSV_HEADER + "old,v1,like,1\n"
    _add(path, old)
    async with _tailing(log, path):
        await _until_logged(caplog, f"{path} is there already, and no {path.name}.position says")
        assert _text(path) == old
        assert "move it" in caplog.text
        # As soon as it is out of the way, it is written.
        _move_away(path)
        await _until(await exported(), path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"log_id": "another"}, "was written from another database"),
        ({"seq": 99}, "holds rows that the database does not"),
        ({"size": 9999}, "is shorter than it was"),
        ({"seq": -1}, "is damaged"),
        ({"more": 1}, "is damaged"),
    ],
)
async def test_a_position_that_does_not_fit_is_refused(
    log: InteractionLog,
    path: Path,
    exported: Exported,
    caplog: pytest.LogCaptureFixture,
    change: dict[str, object],
    reason: str,
) -> None:
    await _grow(log, 3)
    async with _tailing(log, path):
        await _until(await exported(), path)
    before = _text(path)
    _change_position(path, change)
    await _grow(log, 3)
    async with _tailing(log, path):
        await _until_logged(caplog, reason)
    assert _text(path) == before


async def test_a_file_that_goes_away_is_not_begun_again_in_the_middle(
    log: InteractionLog, path: Path, exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    await _grow(log, 3)
    async with _tailing(log, path):
        await _until(await exported(), path)
        _move_away(path)
        await _grow(log, 3)
        await _until_logged(caplog, f"{path} is gone")
        assert not _text(path)


async def test_a_disk_that_fails_is_tried_again(
    log: InteractionLog,
    path: Path,
    exported: Exported,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(csv_tail, "_RETRY_S", 0.05)
    await _grow(log, 3)
    async with _tailing(log, path):
        await _until(await exported(), path)
        with monkeypatch.context() as patched:
            fsync = os.fsync

            def full(descriptor: int) -> None:
                if _is_beside(path, descriptor):
                    raise OSError(28, "No space left on device")
                fsync(descriptor)

            patched.setattr(os, "fsync", full)
            await _grow(log, 3, first=3)
            await _until_logged(caplog, f"cannot write {path}: No space left on device")
        await _until(await exported(), path)


async def test_a_database_that_is_down_is_waited_for(
    log: InteractionLog,
    path: Path,
    exported: Exported,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(csv_tail, "_RETRY_S", 0.05)

    async def down(_after: int, _limit: int) -> list[LoggedInteraction]:
        raise UnavailableError("the database is not reachable")

    await _grow(log, 3)
    with monkeypatch.context() as patched:
        patched.setattr(log, "read", down)
        async with _tailing(log, path):
            await _until_logged(caplog, f"{path} waits: the database is not reachable")
            patched.undo()
            await _until(await exported(), path)


async def test_the_event_loop_never_waits_for_the_disk(
    log: InteractionLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if _is_beside(path, descriptor):
            threads.add(threading.get_ident())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    async with _tailing(log, path):
        await _until(CSV_HEADER, path)
    assert threads
    assert threading.get_ident() not in threads


async def _until_logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    caplog.set_level(logging.INFO)
    async with asyncio.timeout(TIMEOUT_S):
        while text not in caplog.text:
            await asyncio.sleep(0.01)
