"""Data sets in a real database: stored once, read back as they were, problems reported."""

import argparse
import asyncio
import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.log import InteractionLog
from keek_server.storage import tables
from keek_server.storage.database import Database
from keek_training.datasets import store
from keek_training.datasets.commands import add_arguments, run_import, run_synth
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import ImportSummary, import_dataset, load_dataset

SYNTH = "synth:users=50,videos=300,interactions=3000,end=2026-01-01"


@pytest.fixture
def prototype(tmp_path: Path) -> Path:
    folder = tmp_path / "prototype"
    folder.mkdir()
    (folder / "videos.csv").write_text("video_id,tags,duration,owner\nv1,a|b,12.5,o1\nv2,,0.1,o2\n")
    (folder / "interaction_log.csv").write_text(
        "user_id,video_id,action,timestamp\n"
        "u1,v1,like,2024-05-01T10:00:00Z\n"
        "u1,v1,like,2024-05-01T10:00:00Z\n"
        "u2,v2,view,1714557601\n"
    )
    return folder


def _arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser.add_subparsers(dest="command"))
    return parser.parse_args(words)


async def _logged(database: Database) -> list[tuple[str, str, int]]:
    log = tables.interactions.c
    async with database.read() as connection:
        rows = await connection.execute(sa.select(log.user_id, log.video_id, log.kind).order_by(log.seq))
    return [(row[0], row[1], row[2]) for row in rows]


def _same(one: Dataset, other: Dataset) -> bool:
    return bool(one.videos.equals(other.videos) and one.interactions.equals(other.interactions))


async def test_what_is_imported_is_read_back_the_same(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several pages and transactions, the last of them not full.
    monkeypatch.setattr(store, "_ROWS_A_PAGE", 700)
    monkeypatch.setattr(store, "_INTERACTIONS_A_TRANSACTION", 400)
    monkeypatch.setattr(store, "_VIDEOS_A_TRANSACTION", 70)
    dataset = open_dataset(SYNTH)
    assert await import_dataset(database, dataset) == ImportSummary(300, 0, 3000, 0)
    assert _same(await load_dataset(database), dataset)


async def test_importing_twice_adds_nothing(database: Database) -> None:
    dataset = open_dataset(SYNTH)
    await import_dataset(database, dataset)
    assert await import_dataset(database, dataset) == ImportSummary(0, 300, 0, 3000)
    assert _same(await load_dataset(database), dataset)


async def test_an_import_that_was_cut_off_is_finished_by_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(SYNTH)
    part = Dataset("part", dataset.videos, dataset.interactions.slice(0, 1234))
    await import_dataset(database, part)
    assert await import_dataset(database, dataset) == ImportSummary(0, 300, 3000 - 1234, 1234)
    assert _same(await load_dataset(database), dataset)


async def test_equal_events_are_stored_each_and_once(database: Database, prototype: Path) -> None:
    dataset = open_dataset(f"prototype:{prototype}")
    assert await import_dataset(database, dataset) == ImportSummary(2, 0, 3, 0)
    assert await import_dataset(database, dataset) == ImportSummary(0, 2, 0, 3)
    like, view = InteractionKind.LIKE, InteractionKind.VIEW
    assert await _logged(database) == [("u1", "v1", like), ("u1", "v1", like), ("u2", "v2", view)]


async def test_the_log_is_in_the_order_of_time(database: Database) -> None:
    await import_dataset(database, open_dataset(SYNTH))
    log = tables.interactions.c
    async with database.read() as connection:
        times_us = list((await connection.execute(sa.select(log.event_time_us).order_by(log.seq))).scalars())
    assert times_us == sorted(times_us)


async def test_a_known_video_is_replaced(database: Database, prototype: Path) -> None:
    await import_dataset(database, open_dataset(f"prototype:{prototype}"))
    (prototype / "videos.csv").write_text("video_id,tags,duration,owner\nv1,c,1,o9\nv2,,0.1,o2\nv3,,,\n")
    summary = await import_dataset(database, open_dataset(f"prototype:{prototype}"))
    assert (summary.videos_created, summary.videos_updated) == (1, 2)
    videos = (await load_dataset(database)).videos.to_pylist()
    assert [(row["video_id"], row["owner_id"], row["tags"]) for row in videos] == [
        ("v1", "o9", ["c"]),
        ("v2", "o2", []),
        ("v3", "", []),
    ]


async def test_an_empty_database_is_an_empty_data_set(database: Database) -> None:
    dataset = await load_dataset(database)
    assert (dataset.videos.num_rows, dataset.interactions.num_rows) == (0, 0)


async def test_two_imports_at_once_store_everything_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_INTERACTIONS_A_TRANSACTION", 100)
    dataset = open_dataset(SYNTH)
    half = Dataset("half", dataset.videos, dataset.interactions.slice(0, 1500))
    one, other = await asyncio.gather(import_dataset(database, dataset), import_dataset(database, half))
    assert one.interactions_created + other.interactions_created == 3000
    assert _same(await load_dataset(database), dataset)


async def test_a_malformed_line_is_reported_and_the_good_ones_are_imported(
    database: Database, prototype: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = prototype / "interaction_log.csv"
    log.write_text(log.read_text() + "u3,v1,adore,5\nu4,v2,save,6\nu5,v1\n")
    assert await run_import(_arguments("import", f"prototype:{prototype}"), database) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        f"{log}:5: action 'adore' is not one of view, like, save, share, skip",
        f"{log}:7: 2 columns where 4 are expected",
    ]
    assert printed.out == (
        "prototype: 2 videos created, 0 updated; 4 interactions created, 0 known already; 2 problems\n"
    )
    assert ("u4", "v2", InteractionKind.SAVE) in await _logged(database)


async def test_of_very_many_problems_the_first_are_shown_and_the_others_counted(
    database: Database, prototype: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = prototype / "interaction_log.csv"
    log.write_text(log.read_text() + "u3,v9,like,5\n" * 1234)
    assert await run_import(_arguments("import", f"prototype:{prototype}"), database) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 51
    assert lines[49] == f"{log}:54: the video 'v9' is not among the videos"
    assert lines[50] == "... and 1,184 problems more"


async def test_data_without_problems_is_a_success(database: Database, prototype: Path) -> None:
    assert await run_import(_arguments("import", f"prototype:{prototype}"), database) == 0


async def test_a_mapping_comes_from_the_command_line(database: Database, prototype: Path) -> None:
    (prototype / "interaction_log.csv").rename(prototype / "interactions.csv")
    mapping = "kind==save,event_time=timestamp,duration_s=duration"
    arguments = _arguments("import", f"table:{prototype}", "--columns", mapping)
    assert await run_import(arguments, database) == 0
    assert {kind for _, _, kind in await _logged(database)} == {InteractionKind.SAVE}


async def test_a_log_alone_is_imported_with_the_videos_of_the_database(
    database: Database, prototype: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await import_dataset(database, open_dataset(f"prototype:{prototype}"))
    old = prototype / "old.csv"
    old.write_text("user_id,video_id,action,timestamp\nu5,v1,save,7\nu5,v9,save,8\nu5,v2,like,9\n")
    arguments = _arguments("import", "--interactions", str(old))
    assert await run_import(arguments, database) == 1
    printed = capsys.readouterr()
    assert printed.err == f"{old}:3: the video 'v9' is not among the videos\n"
    assert printed.out == (
        "prototype: 0 videos created, 0 updated; 2 interactions created, 0 known already; 1 problems\n"
    )
    row = (await InteractionLog(database).read(0, 10))[3]
    # The video's tags go with it, as with a recorded interaction.
    assert (row.user_id, row.video_id, row.tags) == ("u5", "v1", ("a", "b"))
    await run_import(arguments, database)
    assert "0 interactions created, 2 known already" in capsys.readouterr().out


async def test_a_log_brings_its_videos_along_in_a_file_of_their_own(
    database: Database, prototype: Path
) -> None:
    log, videos = str(prototype / "interaction_log.csv"), str(prototype / "videos.csv")
    assert await run_import(_arguments("import", "--interactions", log, "--videos", videos), database) == 0
    # The same events as of the folder: they are recognised.
    summary = await import_dataset(database, open_dataset(f"prototype:{prototype}"))
    assert summary == ImportSummary(0, 2, 0, 3)


async def test_options_of_the_other_way_to_import_are_refused(database: Database) -> None:
    with pytest.raises(SetupError, match="--videos is for --interactions"):
        await run_import(_arguments("import", "synth", "--videos", "v.csv"), database)
    with pytest.raises(SetupError, match="for a SPEC, not for --interactions"):
        await run_import(_arguments("import", "--interactions", "i.csv", "--part", "all"), database)


@pytest.mark.parametrize("words", [[], ["synth", "--interactions", "i.csv"]])
def test_it_is_either_a_data_set_or_a_log(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        _arguments("import", *words)


@pytest.mark.parametrize("layout", ["parquet", "csv", "prototype"])
async def test_synthetic_data_is_written_and_imported(
    database: Database, tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "made" / layout)
    size = ("--users", "50", "--videos", "300", "--interactions", "3000", "--end", "2026-01-01")
    assert await run_synth(_arguments("synth", out, "--format", layout, *size)) == 0
    assert re.match(r"300 videos and 3,000 interactions in:\n", capsys.readouterr().out)
    reader = "prototype" if layout == "prototype" else "table"
    assert await run_import(_arguments("import", f"{reader}:{out}"), database) == 0
    # The same events as generated in memory: they are recognised.
    assert (await import_dataset(database, open_dataset(SYNTH))).interactions_created == 0


def test_a_mapping_that_is_none_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _arguments("import", "table:x", "--columns", "user_id")
    assert "'user_id' is not NAME=COLUMN" in capsys.readouterr().err
