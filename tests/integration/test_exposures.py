"""The exposure log: what was shown is written in batches, nothing twice and nothing lost."""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa
from schema_steps import leave_row

from keek_server import metrics
from keek_server.clock import now_us
from keek_server.errors import UnavailableError
from keek_server.experiments.assignment import NO_ARMS, Assignment
from keek_server.feed import exposures as exposures_module
from keek_server.feed.exposures import ExposureLog
from keek_server.feed.types import Candidate, FeedPage, FeedSource, PoolEntry, Selection
from keek_server.jobs import running
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.storage.tables import exposure_writers
from keek_server.storage.tables import exposures as table

Work = Callable[[sa.Connection], None]


def page(
    user_id: str,
    *,
    assignment: Assignment = NO_ARMS,
    propensities: list[float] | None = None,
    video_propensities: list[float] | None = None,
    pool: list[PoolEntry] | None = None,
) -> FeedPage:
    context = SimpleNamespace(
        query=SimpleNamespace(user_id=user_id, page_size=3, served=(1, 2)),
        serving=SimpleNamespace(release=SimpleNamespace(id="r1")),
        now_us=now_us(),
        assignment=assignment,
        degradations=[],
    )
    items = [Candidate("v1", FeedSource.TRENDING, 0.5), Candidate("v2", FeedSource.POPULAR, 0.1)]
    selection = Selection(items, [], propensities, video_propensities, pool)
    return cast("FeedPage", SimpleNamespace(context=context, selection=selection, elapsed_s=0.0015))


async def logged(database: Database) -> list[str]:
    query = sa.select(table.c.user_id).order_by(table.c.serve_time_us, table.c.user_id)
    return [row.user_id for row in await database.rows(query)]


async def test_a_page_is_logged_with_its_release_places_sources_and_scores(database: Database) -> None:
    log = ExposureLog(database)
    log.apply(page("u1"))
    await log.flush()
    (row,) = await database.rows(sa.select(table))
    assert (row.user_id, row.release_id, row.slate) == ("u1", "r1", [["v1", 2, 0.5], ["v2", 4, 0.1]])
    assert (row.first_slot, row.slot_count, row.arms) == (2, 3, None)
    assert (row.elapsed_us, row.degraded, row.pool) == (1500, False, None)


async def test_arms_and_odds_are_logged(database: Database) -> None:
    log = ExposureLog(database)
    log.apply(page("u1", assignment=Assignment((("e1", "b"),)), propensities=[0.05, math.nan]))
    await log.flush()
    (row,) = await database.rows(sa.select(table))
    assert row.arms == [["e1", "b"]]
    assert row.slate == [["v1", 2, 0.5, 0.05], ["v2", 4, 0.1, None]]


async def test_what_videos_were_drawn_among_is_logged_with_their_odds(database: Database) -> None:
    log = ExposureLog(database)
    drawn = page("u1", propensities=[1.0, 1.0], video_propensities=[1.0, 0.1 / 7], pool=["v7", 1, ("v8", 1)])
    log.apply(drawn)
    await log.flush()
    (row,) = await database.rows(sa.select(table))
    assert row.slate == [["v1", 2, 0.5, 1.0], ["v2", 4, 0.1, 1.0, 0.0142857]]
    assert row.pool == ["v7", 1, ["v8", 1]]


async def test_of_a_sample_of_users_every_page_is_logged(database: Database) -> None:
    log, before = ExposureLog(database, sampling=0.3), metrics.exposures_logged._value.get()
    for user in range(400):
        for _ in range(2):
            log.apply(page(f"u{user}"))
    await log.flush()
    pages = Counter(await logged(database))
    assert set(pages.values()) == {2}
    assert 80 < len(pages) < 160
    assert metrics.exposures_logged._value.get() - before == pages.total()


async def test_what_comes_while_a_batch_is_written_waits_for_the_next(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, transact, begun = ExposureLog(database), database.transact, 0

    async def counted(work: Work) -> None:
        nonlocal begun
        begun += 1
        # As feeds do under load: while rows are written, more of them come.
        log._waiting.append({**log._waiting[0], "user_id": f"late{begun}"})
        await transact(work)

    log.apply(page("early"))
    await log.flush()  # makes the month's partition where there are such
    for number in range(3):
        log.apply(page(f"u{number}"))
    monkeypatch.setattr(database, "transact", counted)
    await log.flush()
    assert begun == 1
    assert sorted(await logged(database)) == ["early", "u0", "u1", "u2"]
    await log.flush()
    assert sorted(await logged(database)) == ["early", "late1", "u0", "u1", "u2"]


async def test_what_could_not_be_written_waits_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ExposureLog(database)
    log.apply(page("u1"))

    async def down(_work: Work) -> None:
        raise UnavailableError("the database is not reachable")

    with monkeypatch.context() as patched:
        patched.setattr(database, "transact", down)
        with pytest.raises(UnavailableError):
            await log.flush()
    assert await logged(database) == []
    await log.aclose()
    assert await logged(database) == ["u1"]


async def leave(log: ExposureLog, began: asyncio.Event) -> None:
    """Is cancelled in a write that goes on."""
    left = asyncio.create_task(log.flush())
    await began.wait()
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left


async def test_a_write_that_is_left_is_waited_for_and_not_begun_anew(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, transact, begun = ExposureLog(database), database.transact, 0
    stored, told = asyncio.Event(), asyncio.Event()

    async def slow(work: Work) -> None:
        nonlocal begun
        begun += 1
        await transact(work)
        stored.set()
        await told.wait()

    monkeypatch.setattr(database, "transact", slow)
    before = metrics.exposures_logged._value.get()
    log.apply(page("u1"))
    await leave(log, stored)
    closing = asyncio.create_task(log.aclose())
    await asyncio.sleep(0.05)
    assert not closing.done()
    told.set()
    await closing
    assert (begun, await logged(database)) == (1, ["u1"])
    assert metrics.exposures_logged._value.get() - before == 1


async def test_a_write_that_is_left_and_fails_is_repeated_when_the_log_is_closed(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, transact, begun = ExposureLog(database), database.transact, 0
    began, failed = asyncio.Event(), asyncio.Event()

    async def down_at_first(work: Work) -> None:
        nonlocal begun
        begun += 1
        if begun == 1:
            began.set()
            await failed.wait()
            raise UnavailableError("the database is not reachable")
        await transact(work)

    monkeypatch.setattr(database, "transact", down_at_first)
    log.apply(page("u1"))
    await leave(log, began)
    failed.set()
    await log.aclose()
    assert (begun, await logged(database)) == (2, ["u1"])


async def test_a_server_that_stops_at_any_moment_of_a_write_logs_each_page_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposures_module, "_FLUSH_S", 0.0)
    monkeypatch.setattr(exposures_module, "_CLOSING_S", 60.0)
    database._deadline_s = 60.0
    users = []
    for stopped_ms in (0, 2, 4, 6, 8, 10, 15, 20, 30):
        log = ExposureLog(database)
        for number in range(200):
            users.append(f"u{stopped_ms}-{number}")
            log.apply(page(users[-1]))
        async with running({"exposure log": log.run}):
            await asyncio.sleep(stopped_ms / 1000)
        await log.aclose()
    assert sorted(await logged(database)) == sorted(users)


async def test_a_write_that_outlasts_its_deadline_stores_nothing_twice(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, insert, stalls = ExposureLog(database), exposures_module._insert, 1
    log.apply(page("u0"))
    await log.flush()  # makes the month's partition where there are such

    def stalled(*arguments: Any) -> None:
        nonlocal stalls
        insert(*arguments)
        if stalls:
            stalls -= 1
            if database.is_sqlite:
                time.sleep(0.6)  # its thread, as a slow disk does
            else:
                arguments[-1].execute(sa.text("SELECT pg_sleep(0.6)"))

    monkeypatch.setattr(exposures_module, "_insert", stalled)
    log.apply(page("u1"))
    with monkeypatch.context() as patched:
        patched.setattr(database, "_deadline_s", 0.3)
        with pytest.raises(UnavailableError, match="took longer"):
            await log.flush()
    log.apply(page("u2"))
    await log.flush()
    assert await logged(database) == ["u0", "u1", "u2"]


@pytest.mark.parametrize("earlier", [0, 1])
async def test_a_write_that_is_stored_though_the_connection_broke_is_not_stored_again(
    database: Database, monkeypatch: pytest.MonkeyPatch, earlier: int
) -> None:
    log, transact = ExposureLog(database), database.transact
    users = [f"u{number}" for number in range(earlier)]
    for user in users:
        log.apply(page(user))
        await log.flush()

    async def lost(work: Work) -> None:
        await transact(work)
        raise UnavailableError("the database is not reachable")

    before = metrics.exposures_logged._value.get()
    log.apply(page("v1"))
    with monkeypatch.context() as patched:
        patched.setattr(database, "transact", lost)
        for _ in range(2):
            with pytest.raises(UnavailableError):
                await log.flush()
            # What comes meanwhile is no part of the write that is repeated.
            log.apply(page("v2"))
    await log.flush()
    assert await logged(database) == [*users, "v1", "v2", "v2"]
    assert metrics.exposures_logged._value.get() - before == 3
    log.apply(page("v3"))
    await log.aclose()
    assert await logged(database) == [*users, "v1", "v2", "v2", "v3"]


async def test_a_repeated_write_waits_for_one_that_still_commits(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, committing = ExposureLog(database), asyncio.Event()
    ending: list[asyncio.Task[None]] = []

    async def lost(work: Work) -> None:
        written = asyncio.Event()

        async def commit_later() -> None:
            async with database.write() as connection:
                await connection.run_sync(work)
                written.set()
                await committing.wait()

        ending.append(asyncio.create_task(commit_later()))
        await written.wait()
        raise UnavailableError("the database is not reachable")

    log.apply(page("u1"))
    with monkeypatch.context() as patched:
        patched.setattr(database, "transact", lost)
        with pytest.raises(UnavailableError):
            await log.flush()
    again = asyncio.create_task(log.flush())
    await asyncio.sleep(0.2)
    assert not again.done()
    committing.set()
    await asyncio.gather(again, *ending)
    assert await logged(database) == ["u1"]


async def test_a_log_is_closed_though_its_write_never_ends(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, before = ExposureLog(database), metrics.exposures_dropped._value.get()

    async def stuck(_work: Work) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(database, "transact", stuck)
    monkeypatch.setattr(exposures_module, "_CLOSING_S", 0.1)
    log.apply(page("u1"))
    await log.aclose()
    assert metrics.exposures_dropped._value.get() - before == 1
    assert log._writing is None


async def test_writers_that_are_long_gone_are_forgotten_and_others_are_not(database: Database) -> None:
    async with database.write() as connection:
        rows = [("gone", 1), ("other", now_us())]
        for writer_id, write_time_us in rows:
            values = {"writer_id": writer_id, "batch": 7, "write_time_us": write_time_us}
            await connection.execute(exposure_writers.insert().values(values))
    log = ExposureLog(database)
    log.apply(page("u1"))
    await log.flush()
    found = await database.rows(sa.select(exposure_writers).order_by(exposure_writers.c.batch))
    assert [row.batch for row in found] == [1, 7]
    assert found[1].writer_id == "other"


async def test_exposures_from_before_there_were_writers_stay(settings: Settings) -> None:
    columns, values = "user_id, release_id, serve_time_us, slate", "'old', 'r1', 5, '[]'"
    await leave_row(settings, "0006", "exposures", f"INSERT INTO exposures ({columns}) VALUES ({values})")
    async with open_database(settings) as database:
        log = ExposureLog(database)
        log.apply(page("new"))
        await log.flush()
        assert await logged(database) == ["old", "new"]
