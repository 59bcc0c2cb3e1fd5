"""The log written to a file and read back, on every database that it runs on."""

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from uuid import UUID

import pyarrow.parquet as pq
import pytest
from projecting import LIKE, SAVE, SKIP, VIEW, event

from keek_server.clock import now_us, us_iso
from keek_server.commands import add_export_arguments, run_export
from keek_server.interactions import export
from keek_server.interactions import log as log_module
from keek_server.interactions.append import Interaction
from keek_server.interactions.export import ExportedInteraction, read_pages
from keek_server.interactions.log import InteractionLog
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.video import Video
from keek_training.datasets.commands import add_arguments, run_import

KINDS = (VIEW, LIKE, SAVE, SKIP)
USERS = ("u1", 'u"2"', "u,3", "ü\n4")
DAY_US = 24 * 3600 * 1_000_000


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Database]:
    """A database that holds nothing."""
    async with open_database(Settings(data_dir=tmp_path / "other")) as opened:
        yield opened


@pytest.fixture
async def events(database: Database, monkeypatch: pytest.MonkeyPatch) -> list[Interaction]:
    """What is in the log; it is read in several pages, of which the last is not full."""
    monkeypatch.setattr(export, "_SEQS_A_PAGE", 70)
    made = [
        event(
            USERS[i % 4],
            f"v{i % 7}",
            KINDS[i % 4],
            age_s=200.0 - i,
            region="de",
            tags=(f"t{i % 7}",),
            watched_ms=100 * i + 1 if KINDS[i % 4] in (VIEW, SKIP) and i % 3 else None,
        )
        for i in range(200)
    ]
    await InteractionLog(database).append(made)
    return made


async def _export(settings: Settings, *words: str) -> None:
    parser = argparse.ArgumentParser()
    add_export_arguments(parser)
    await run_export(parser.parse_args(words), settings)


async def _import(database: Database, *words: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser.add_subparsers(dest="command"))
    return await run_import(parser.parse_args(["import", *words]), database)


async def _rows(database: Database) -> list[ExportedInteraction]:
    return [row for page in [page async for page in read_pages(database)] for row in page.rows]


async def _put_videos(database: Database) -> None:
    await Catalogue(database).put([Video(f"v{i}", "", [f"t{i}"], 0.0, "", 0) for i in range(7)])


async def test_a_csv_is_what_the_prototype_wrote(
    settings: Settings, events: list[Interaction], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "log.csv"
    await _export(settings, "--out", str(out))
    assert capsys.readouterr().out == "200 interactions exported\n"
    with out.open(newline="") as file:
        read = list(csv.reader(file))
    assert read[0] == ["user_id", "video_id", "action", "timestamp"]
    assert read[1:] == [[e.user_id, e.video_id, e.kind.name.lower(), us_iso(e.event_time_us)] for e in events]


async def test_a_csv_imported_elsewhere_is_exported_the_same(
    settings: Settings, events: list[Interaction], other: Database, tmp_path: Path
) -> None:
    out, again = tmp_path / "log.csv", tmp_path / "again.csv"
    await _export(settings, "--out", str(out))
    await _put_videos(other)
    assert await _import(other, "--interactions", str(out)) == 0
    await _export(Settings(data_dir=tmp_path / "other"), "--out", str(again))
    assert again.read_bytes() == out.read_bytes()
    assert [row.tags for row in await _rows(other)] == [list(e.tags) for e in events]


async def test_a_csv_that_says_how_long_was_watched_says_it_elsewhere(
    settings: Settings, events: list[Interaction], other: Database, tmp_path: Path
) -> None:
    out = tmp_path / "log.csv"
    await _export(settings, "--watched", "--out", str(out))
    await _put_videos(other)
    assert await _import(other, "--interactions", str(out)) == 0
    assert [row.watched_ms for row in await _rows(other)] == [e.watched_ms for e in events]


async def test_parquet_imported_elsewhere_keeps_ids_regions_and_watched_times(
    settings: Settings, events: list[Interaction], database: Database, other: Database, tmp_path: Path
) -> None:
    await _export(settings, "--format", "parquet", "--out", str(tmp_path / "interactions.parquet"))
    (tmp_path / "videos.csv").write_text("video_id,tags\n" + "".join(f"v{i},t{i}\n" for i in range(7)))
    assert await _import(other, f"table:{tmp_path}") == 0
    copied = [row._replace(record_time_us=0) for row in await _rows(other)]
    assert copied == [row._replace(record_time_us=0) for row in await _rows(database)]
    assert [row.event_id.hex for row in copied] == [e.event_id for e in events]
    assert [row.watched_ms for row in copied] == [e.watched_ms for e in events]


async def test_parquet_imported_where_it_came_from_adds_nothing(
    settings: Settings,
    events: list[Interaction],
    database: Database,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    await _export(settings, "--format", "parquet", "--out", str(tmp_path / "interactions.parquet"))
    (tmp_path / "videos.csv").write_text("video_id\n" + "".join(f"v{i}\n" for i in range(7)))
    assert await _import(database, f"table:{tmp_path}") == 0
    assert "0 interactions created, 200 known already" in capsys.readouterr().out
    assert len(await _rows(database)) == len(events)


async def test_rows_without_an_id_among_others_get_the_same_one_each_time(
    other: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "01890000-0000-7000-8000-0000000000ab"
    (tmp_path / "videos.csv").write_text("video_id\nv1\n")
    (tmp_path / "interactions.csv").write_text(
        f"user_id,video_id,kind,event_time,event_id\nu1,v1,like,5,{own}\nu1,v1,like,6,\nu1,v1,like,6,\n"
    )
    assert await _import(other, f"table:{tmp_path}") == 0
    assert await _import(other, f"table:{tmp_path}") == 0
    assert "0 interactions created, 3 known already" in capsys.readouterr().out
    ids = [row.event_id for row in await _rows(other)]
    assert ids[0] == UUID(own)
    assert len(set(ids)) == 3


@pytest.mark.parametrize("format_", ["csv", "parquet"])
async def test_an_empty_log_is_an_empty_file(
    settings: Settings, tmp_path: Path, format_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"log.{format_}"
    await _export(settings, "--format", format_, "--out", str(out))
    assert capsys.readouterr().out == "0 interactions exported\n"
    rows = out.read_text().count("\n") - 1 if format_ == "csv" else pq.read_table(out).num_rows
    assert rows == 0


async def test_since_is_when_a_row_was_recorded(
    settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_SEQS_A_PAGE", 3)
    start_us = now_us() - 40 * DAY_US
    for day in range(10):
        monkeypatch.setattr(log_module, "now_us", lambda at=start_us + day * DAY_US: at)
        # Recorded later the earlier it happened.
        await InteractionLog(database).append([event("u1", f"v{day}", age_s=50.0 * 86400 + day)])
    out = tmp_path / "log.csv"
    for since_us, days in ((start_us + 6 * DAY_US, range(6, 10)), (start_us + 6 * DAY_US + 1, range(7, 10))):
        await _export(settings, "--since", us_iso(since_us), "--out", str(out))
        assert [line.split(",")[1] for line in out.read_text().splitlines()[1:]] == [f"v{d}" for d in days]


async def test_what_retention_removed_is_not_looked_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = InteractionLog(database)
    monkeypatch.setattr(log_module, "now_us", lambda: now_us() - 100 * DAY_US)
    await log.append([event("u1", "v1")])
    monkeypatch.setattr(log_module, "now_us", now_us)
    await log.append([event("u1", "v2")])
    while await log.prune(now_us() - 50 * DAY_US):
        pass
    pages = [page async for page in read_pages(database)]
    assert [row.video_id for page in pages for row in page.rows] == ["v2"]
    assert [(page.seq, page.last_seq) for page in pages] == [(2, 2)]


async def test_the_command_writes_to_standard_output_and_reports_beside_it(
    settings: Settings, events: list[Interaction]
) -> None:
    done = _command(settings, "export", "--out", "-")
    assert done.returncode == 0, done.stderr
    assert len(list(csv.reader(done.stdout.splitlines(keepends=True)))) == len(events) + 1
    # No progress: standard error is no terminal.
    assert done.stderr == "200 interactions exported\n"


async def test_the_command_says_in_one_line_what_is_wrong(settings: Settings, tmp_path: Path) -> None:
    done = _command(settings, "export", "--out", str(tmp_path / "no" / "log.csv"))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("keek-server: cannot write to ")


def _command(settings: Settings, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ,
        "KEEK_DATA_DIR": str(settings.data_dir),
        "KEEK_DATABASE_URL": settings.database_url,
    }
    command = [sys.executable, "-m", "keek_server", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


async def test_parquet_times_are_moments(
    settings: Settings, events: list[Interaction], tmp_path: Path
) -> None:
    out = tmp_path / "log.parquet"
    await _export(settings, "--format", "parquet", "--out", str(out))
    times = pq.read_table(out)["event_time"].to_pylist()
    assert times == [datetime.fromisoformat(us_iso(e.event_time_us)) for e in events]
