"""The CSV file that grows with the log, when the log was restored or pruned, or the file is an older one."""

import json
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

from keek_server.interactions import csv_tail
from keek_server.interactions.csv_lines import CSV_HEADER
from keek_server.interactions.log import InteractionLog
from keek_server.settings import Settings
from keek_server.storage.database import Database

Exported = Callable[[], Awaitable[str]]


@pytest.fixture
def log(database: Database) -> InteractionLog:
    return InteractionLog(database)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "interaction_log.csv"


@pytest.fixture
def exported(settings: Settings, tmp_path: Path) -> Exported:
    return lambda: export_text(settings, tmp_path / "exported.csv")


async def restore(database: Database, last_seq: int) -> None:
    """Gives the log a state that it had before, as from a backup."""
    reset = (
        f"UPDATE sqlite_sequence SET seq = {last_seq} WHERE name = 'interactions'"
        if database.is_sqlite
        else f"SELECT setval('interactions_seq_seq', {last_seq})"
    )
    async with database.write() as connection:
        await connection.exec_driver_sql(f"DELETE FROM interactions WHERE seq > {last_seq}")
        await connection.exec_driver_sql(reset)


@pytest.mark.parametrize("is_running", [True, False])
async def test_a_file_of_rows_that_a_restored_log_lacks_is_refused_also_when_the_log_has_grown_again(
    database: Database,
    log: InteractionLog,
    path: Path,
    exported: Exported,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    is_running: bool,
) -> None:
    monkeypatch.setattr(csv_tail, "_REFUSED_S", 0.05)
    await grow(log, 6)
    async with tailing(log, path):
        await until_written(await exported(), path)
        before = text_of(path)
        if is_running:
            await restore(database, 3)
            await grow(log, 5, first=10)
            await until_logged(caplog, "holds rows that the database does not")
    if not is_running:
        await restore(database, 3)
        await grow(log, 5, first=10)
    assert text_of(path) == before
    async with tailing(log, path):
        caplog.clear()
        await until_logged(caplog, "holds rows that the database does not")
        assert text_of(path) == before
        move_away(path)
        sidecar_of(path).unlink()
        await until_written(await exported(), path)


async def test_a_position_from_before_its_row_was_recognised_goes_on(
    log: InteractionLog, path: Path, exported: Exported
) -> None:
    await grow(log, 3)
    async with tailing(log, path):
        await until_written(await exported(), path)
    position = json.loads(text_of(sidecar_of(path)))
    assert position.pop("tail")
    sidecar_of(path).write_text(json.dumps(position))
    async with tailing(log, path):
        await grow(log, 3, first=3)
        await until_written(await exported(), path)
    assert json.loads(text_of(sidecar_of(path)))["tail"]


async def test_a_position_whose_row_was_pruned_goes_on(
    log: InteractionLog, path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("keek_server.interactions.log.now_us", lambda: 0)
        await grow(log, 3)
    async with tailing(log, path):
        await until_written(await exported(), path)
    before = text_of(path)
    while await log.prune(10**15):
        pass
    await grow(log, 3, first=3)
    async with tailing(log, path):
        await until_written(before + (await exported()).removeprefix(CSV_HEADER), path)
