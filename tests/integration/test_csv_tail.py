"""The CSV file that grows with the log: every line once, wherever its writer is killed."""

import asyncio
import json
import os
import random
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from csv_steps import (
    export_text,
    grow,
    move_away,
    sidecar_of,
    tailing,
    text_of,
    until_logged,
    until_written,
)

from keek_server.errors import UnavailableError
from keek_server.interactions import csv_tail
from keek_server.interactions.csv_lines import CSV_HEADER
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
        return await export_text(settings, tmp_path / "exported.csv")

    return export


Exported = Callable[[], Awaitable[str]]


def _is_beside(path: Path, descriptor: int) -> bool:
    """Whether what is open is the folder or a file in it: others in this process write files, too."""
    opened = Path(f"/proc/self/fd/{descriptor}").readlink()
    return path.parent in (opened, opened.parent)


def _add(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def _change_position(path: Path, change: dict[str, object]) -> None:
    sidecar = sidecar_of(path)
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), **change}))


async def test_an_empty_log_is_a_header(log: InteractionLog, path: Path) -> None:
    async with tailing(log, path):
        await until_written(CSV_HEADER, path)


async def test_the_file_follows_the_log(
    log: InteractionLog, path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_tail, "_ROWS", 7)
    await grow(log, 30)
    async with tailing(log, path):
        await until_written(await exported(), path)
        await grow(log, 5, first=30)
        await until_written(await exported(), path)
    await grow(log, 5, first=35)
    async with tailing(log, path):
        await until_written(await exported(), path)
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
    await grow(log, 10)
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
        async with tailing(log, path) as task:
            await asyncio.wait([task], timeout=TIMEOUT_S)
            assert isinstance(task.exception(), Killed)
    async with tailing(log, path):
        await until_written(await exported(), path)


@pytest.mark.parametrize(
    "rest", ["u1,v", "u10,v10,like,2026-01-01T00:00:00.000000Z\n", "\n\n", "x" * 100_000]
)
async def test_what_stands_behind_the_position_is_cut_off_at_once(
    log: InteractionLog, path: Path, exported: Exported, rest: str
) -> None:
    await grow(log, 10)
    async with tailing(log, path):
        await until_written(await exported(), path)
    _add(path, rest)
    async with tailing(log, path):
        await until_written(await exported(), path)
        await grow(log, 3, first=10)
        await until_written(await exported(), path)


async def test_a_process_killed_again_and_again_while_the_log_grows(
    settings: Settings, log: InteractionLog, path: Path, exported: Exported
) -> None:
    await grow(log, 1000)
    stop = asyncio.Event()

    async def pour() -> None:
        first = 1000
        while not stop.is_set():
            await grow(log, 5, first=first)
            first += 5
            await asyncio.sleep(0.02)

    growing = asyncio.create_task(pour())
    chance = random.Random(4)
    for _ in range(4):
        size = len(text_of(path))
        process = await _start(settings, path)
        async with asyncio.timeout(TIMEOUT_S):
            while len(text_of(path)) <= size:
                await asyncio.sleep(0.001)
        await asyncio.sleep(chance.uniform(0.0, 0.1))
        process.kill()
        await process.wait()
        assert process.returncode == -9
    stop.set()
    await growing
    process = await _start(settings, path)
    await until_written(await exported(), path)
    process.kill()
    await process.wait()
    lines = text_of(path).splitlines()
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
    await grow(log, 50)
    process = await _start(settings, path)
    await until_written(await exported(), path)
    async with tailing(log, path), tailing(log, path):
        for first in range(50, 100, 10):
            await grow(log, 10, first=first)
            await until_written(await exported(), path)
        process.kill()
        await process.wait()
        await grow(log, 10, first=100)
        await until_written(await exported(), path)
    lines = text_of(path).splitlines()
    assert len(lines) == len(set(lines)) == 111


async def test_a_file_that_nobody_knows_is_left_as_it_is(
    log: InteractionLog,
    path: Path,
    exported: Exported,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(csv_tail, "_REFUSED_S", 0.05)
    await grow(log, 3)
    old = CSV_HEADER + "old,v1,like,1\n"
    _add(path, old)
    async with tailing(log, path):
        await until_logged(caplog, f"{path} is there already, and no {path.name}.position says")
        assert text_of(path) == old
        assert "move it" in caplog.text
        # As soon as it is out of the way, it is written.
        move_away(path)
        await until_written(await exported(), path)


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
    await grow(log, 3)
    async with tailing(log, path):
        await until_written(await exported(), path)
    before = text_of(path)
    _change_position(path, change)
    await grow(log, 3)
    async with tailing(log, path):
        await until_logged(caplog, reason)
    assert text_of(path) == before


async def test_a_file_that_goes_away_is_not_begun_again_in_the_middle(
    log: InteractionLog, path: Path, exported: Exported, caplog: pytest.LogCaptureFixture
) -> None:
    await grow(log, 3)
    async with tailing(log, path):
        await until_written(await exported(), path)
        move_away(path)
        await grow(log, 3)
        await until_logged(caplog, f"{path} is gone")
        assert not text_of(path)


async def test_a_disk_that_fails_is_tried_again(
    log: InteractionLog,
    path: Path,
    exported: Exported,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(csv_tail, "_RETRY_S", 0.05)
    await grow(log, 3)
    async with tailing(log, path):
        await until_written(await exported(), path)
        with monkeypatch.context() as patched:
            fsync = os.fsync

            def full(descriptor: int) -> None:
                if _is_beside(path, descriptor):
                    raise OSError(28, "No space left on device")
                fsync(descriptor)

            patched.setattr(os, "fsync", full)
            await grow(log, 3, first=3)
            await until_logged(caplog, f"cannot write {path}: No space left on device")
        await until_written(await exported(), path)


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

    await grow(log, 3)
    with monkeypatch.context() as patched:
        patched.setattr(log, "read", down)
        async with tailing(log, path):
            await until_logged(caplog, f"{path} waits: the database is not reachable")
            patched.undo()
            await until_written(await exported(), path)


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
    async with tailing(log, path):
        await until_written(CSV_HEADER, path)
    assert threads
    assert threading.get_ident() not in threads
