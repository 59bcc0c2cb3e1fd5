"""The log's contract, on every database that it runs on."""

import asyncio
import datetime as dt
import math
import time
import uuid
from dataclasses import replace

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from projecting import LIKE, SKIP, VIEW, event
from schema_steps import leave_row

from keek_server.clock import now_us
from keek_server.errors import SetupError, UnavailableError
from keek_server.interactions import log as log_module
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.users import LoggedUsers
from keek_server.settings import Settings
from keek_server.storage import database as database_module
from keek_server.storage import tables
from keek_server.storage.database import Database, open_database
from keek_server.storage.migrate import upgrade
from keek_server.storage.partitions import month_start_us, next_month_us

HALF_A_MONTH_US = 15 * 24 * 3600 * 1_000_000


@pytest.fixture
def log(database: Database) -> InteractionLog:
    return InteractionLog(database)


async def test_an_event_is_stored_once_however_often_it_is_sent(log: InteractionLog) -> None:
    first = event("u1", "v1")
    assert (await log.append([first])).created == (True,)
    assert (await log.append([first, event("u1", "v2"), first])).created == (False, True, False)
    assert [row.video_id for row in await log.read(0, 10)] == ["v1", "v2"]


async def test_of_two_copies_in_one_batch_the_first_is_new(log: InteractionLog) -> None:
    first = event("u1", "v1")
    assert (await log.append([first, first])).created == (True, False)
    assert len(await log.read(0, 10)) == 1


async def test_an_event_sent_again_stands_at_or_before_the_number_that_is_answered(
    log: InteractionLog,
) -> None:
    first = event("u1", "v1")
    number = (await log.append([first])).seq
    last = (await log.append([event("u1", "v2")])).seq
    again = await log.append([first])
    assert number < last <= again.seq


async def test_everything_about_an_event_comes_back_from_memory_and_from_the_disk(
    database: Database, log: InteractionLog
) -> None:
    sent = event("u:{1} 'ü'", 'v"1', region="de", tags=('a"b', "ü,c"))
    await log.append([sent, event("u2", "v2")])
    row, plain = await log.read(0, 10)
    assert (row.user_id, row.video_id, row.kind) == (sent.user_id, sent.video_id, sent.kind)
    assert row.event_time_us == sent.event_time_us
    assert row.record_time_us >= sent.event_time_us
    assert (row.region, row.tags) == ("de", ('a"b', "ü,c"))
    assert (plain.region, plain.tags) == ("", ())
    assert await InteractionLog(database).read(0, 10) == [row, plain]


async def test_how_long_videos_were_watched_is_kept_and_a_copy_changes_nothing(
    database: Database, log: InteractionLog
) -> None:
    sent = [
        event("u1", "v1", VIEW, watched_ms=12_500),
        event("u1", "v2", LIKE),
        event("u1", "v3", SKIP, watched_ms=0),
        event("u1", "v4", VIEW, watched_ms=86_400_000),
    ]
    assert (await log.append(sent)).created == (True,) * 4
    changed = [replace(sent[0], watched_ms=1), replace(sent[1]), event("u1", "v5", SKIP, watched_ms=7)]
    assert (await log.append(changed)).created == (False, False, True)
    column = sa.select(tables.interactions.c.watched_ms).order_by(tables.interactions.c.seq)
    rows = await database.rows(column)
    assert [row.watched_ms for row in rows] == [12_500, None, 0, 86_400_000, 7]


async def test_interactions_from_before_there_were_watched_times_have_none(settings: Settings) -> None:
    statement = (
        "INSERT INTO interactions (event_id, user_id, video_id, kind, event_time_us, record_time_us,"
        " region, tags) VALUES ('018900000000700080000000000000ab', 'u1', 'v1', 1, 5, 5, '', '[]')"
    )
    await leave_row(settings, "0005", "interactions", statement)
    async with open_database(settings) as database:
        old = event("u1", "v1", VIEW, event_id="018900000000700080000000000000ab", watched_ms=9)
        new = event("u1", "v2", VIEW, watched_ms=7)
        assert (await InteractionLog(database).append([old, new])).created == (False, True)
        rows = await database.rows(sa.select(tables.interactions).order_by(tables.interactions.c.seq))
        assert [(row.video_id, row.watched_ms) for row in rows] == [("v1", None), ("v2", 7)]


async def test_one_that_writes_and_reads_skips_nothing_that_others_wrote(
    settings: Settings, log: InteractionLog
) -> None:
    async with open_database(settings) as own:
        other = InteractionLog(own)
        first = event("u1", "v0")
        seen: list[str] = []
        after = 0
        for i in range(1, 40):
            await log.append([event("u1", f"a{i}"), event("u1", f"b{i}")])
            await other.append([event("u2", f"c{i}")])
            # Partly known: its numbers have gaps.
            await log.append([event("u1", f"d{i}"), first, event("u1", f"e{i}")])
            while i % 3 == 0 and (rows := await log.read(after, 4)):
                seen += [row.video_id for row in rows]
                after = rows[-1].seq
    everything = [row.video_id for row in await InteractionLog(log._database).read(0, 1000)]
    assert seen == everything
    assert len(seen) == 39 * 5 + 1


async def test_a_batch_keeps_its_order(log: InteractionLog) -> None:
    await log.append([event("u1", f"v{i}") for i in range(1000)])
    assert [row.video_id for row in await log.read(0, 1000)] == [f"v{i}" for i in range(1000)]
    assert [row.video_id for row in await log.history("u1", 3)] == ["v997", "v998", "v999"]


async def test_users_are_known_from_the_log_as_from_the_projection(
    log: InteractionLog, database: Database
) -> None:
    await log.append([event("u1", f"v{i % 40}", kind) for i in range(50) for kind in (LIKE, VIEW)])
    await log.append([event(f"u{n}", f"w{n}") for n in range(2, 40)])
    users = LoggedUsers(database, history_limit=3, seen_limit=20)
    user, again, nobody, *others = await asyncio.gather(
        *map(users.user, ("u1", "u1", "nobody", *(f"u{n}" for n in range(2, 40))))
    )
    assert list(user.history) == list(again.history)
    assert [(entry.video_id, entry.kind) for entry in user.history] == [
        ("v8", VIEW),
        ("v9", LIKE),
        ("v9", VIEW),
    ]
    assert user.seen == {f"v{i}" for i in range(10)}
    assert len(nobody.history) == len(nobody.seen) == 0
    assert [other.seen for other in others] == [{f"w{n}"} for n in range(2, 40)]


async def test_concurrent_appends_are_all_there_in_one_order(log: InteractionLog) -> None:
    appended = await asyncio.gather(*(log.append([event("u1", f"v{i}")]) for i in range(500)))
    rows = await log.read(0, 1000)
    assert {row.video_id for row in rows} == {f"v{i}" for i in range(500)}
    assert [row.seq for row in rows] == sorted({row.seq for row in rows})
    assert max(a.seq for a in appended) == rows[-1].seq == (await log.extent()).last_seq


async def test_a_reader_that_follows_several_writers_skips_nothing(
    settings: Settings, log: InteractionLog
) -> None:
    async def write(writer: int) -> None:
        async with open_database(settings) as own:
            own_log = InteractionLog(own)
            for i in range(60):
                await own_log.append([event(f"u{writer}", f"v{i}")])

    writers = [asyncio.create_task(write(i)) for i in range(4)]
    seen: list[tuple[str, str]] = []
    after = 0
    while True:
        done = all(writer.done() for writer in writers)
        for row in await log.read(after, 7):
            seen.append((row.user_id, row.video_id))
            after = row.seq
        if done and len(seen) == 240:
            break
        assert not done or await log.read(after, 1)
    await asyncio.gather(*writers)
    assert len(set(seen)) == 240


async def test_what_was_appended_survives_closing_the_database(
    settings: Settings, log: InteractionLog
) -> None:
    await log.append([event("u1", "v1")])
    async with open_database(settings) as again:
        assert [row.video_id for row in await InteractionLog(again).history("u1", 5)] == ["v1"]


async def test_what_waits_for_too_long_is_refused(database: Database) -> None:
    # The first one is to be taken up, however long that takes: only the others wait for too long.
    log = InteractionLog(database, max_rows=1, max_delay_s=math.inf)
    async with database.write() as connection:
        await connection.run_sync(database.lock_log)
        waiting = [asyncio.create_task(log.append([event("u1", "v0")]))]
        async with asyncio.timeout(10):
            while log._batcher._drainer is None or log._batcher._waiting:
                await asyncio.sleep(0.01)
        log._batcher._max_delay_s = 0.05
        waiting += [asyncio.create_task(log.append([event("u1", f"v{i}")])) for i in (1, 2)]
        await asyncio.sleep(0.3)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(outcomes[-1], UnavailableError)
    assert not isinstance(outcomes[0], BaseException)


async def test_months_are_pruned_whole_and_events_stay_known_across_months(
    log: InteractionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_us = int(dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp() * 1e6)
    events = []
    for half_month in range(8):
        monkeypatch.setattr(log_module, "now_us", lambda at=start_us + half_month * HALF_A_MONTH_US: at)
        events.append(event("u1", f"v{half_month}"))
        await log.append(events[-1:])
    # An id of an earlier month is still recognised.
    assert (await log.append(events)).created == (False,) * 8
    cutoff_us = start_us + 4 * HALF_A_MONTH_US + 1
    while await log.prune(cutoff_us):
        pass
    # The cutoff is in March: January and February are gone.
    months = [dt.datetime.fromtimestamp(r.record_time_us / 1e6, dt.UTC).month for r in await log.read(0, 9)]
    assert months
    assert min(months) == 3
    extent = await log.extent()
    assert extent.pruned_seq == 8 - len(months)
    assert extent.last_seq == 8
    assert not await log.prune(cutoff_us)


async def test_a_value_that_the_database_refuses_is_no_outage(
    log: InteractionLog, database: Database
) -> None:
    if database.is_sqlite:
        pytest.skip("SQLite stores any value")
    with pytest.raises(sa.exc.DBAPIError):
        await log.append([event("u1", "v1", region="longer than sixteen")])
    assert (await log.append([event("u1", "v2")])).created == (True,)


async def test_a_backup_that_reads_for_long_stops_no_append_at_the_turn_of_a_month(
    database: Database, log: InteractionLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.append([event("u1", "v1")])
    monkeypatch.setattr(log_module, "now_us", lambda: next_month_us(month_start_us(now_us())))
    async with database.read() as connection:
        await connection.execute(sa.select(tables.interactions.c.seq))
        assert (await InteractionLog(database).append([event("u1", "v2")])).created == (True,)


async def test_several_servers_may_prune_at_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    start_us = int(dt.datetime(2026, 1, 1, tzinfo=dt.UTC).timestamp() * 1e6)
    log = InteractionLog(database)
    for half_month in range(6):
        monkeypatch.setattr(log_module, "now_us", lambda at=start_us + half_month * HALF_A_MONTH_US: at)
        await log.append([event("u1", f"v{half_month}")])

    async def prune() -> None:
        while await InteractionLog(database).prune(start_us + 4 * HALF_A_MONTH_US + 1):
            pass

    await asyncio.gather(*(prune() for _ in range(4)))
    assert (await log.extent()).pruned_seq == 4


async def test_event_ids_are_unique_in_the_database_itself(database: Database, log: InteractionLog) -> None:
    one = event("u1", "v1")
    await log.append([one])
    row = (await log.read(0, 1))[0]
    copy = {
        "event_id": uuid.UUID(one.event_id),
        "user_id": "u2",
        "video_id": "v2",
        "kind": 1,
        "event_time_us": 1,
        "record_time_us": row.record_time_us,
        "region": "",
        "tags": [],
    }
    with pytest.raises(sa.exc.IntegrityError):
        async with database.write() as connection:
            await connection.execute(tables.interactions.insert().values(copy))


async def test_the_migrations_make_what_the_queries_expect(database: Database) -> None:
    def compare(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                # Made by month, and with the unique index that only they can have.
                "include_name": lambda name, kind, _: kind != "table" or not str(name)[-4:-3].isdigit(),
                "include_object": lambda _o, name, *_: name not in {None, "uq_interactions_event_id"},
            },
        )
        return list(compare_metadata(context, tables.metadata))

    async with database.read() as connection:
        assert await connection.run_sync(compare) == []


async def test_a_schema_from_before_the_migrations_is_refused(settings: Settings) -> None:
    engine = sa.ext.asyncio.create_async_engine(settings.database_url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("CREATE TABLE interactions (seq INTEGER)"))
    await engine.dispose()
    with pytest.raises(SetupError, match="before the first release"):
        async with open_database(settings):
            pass


async def test_a_newer_schema_is_refused(settings: Settings, database: Database) -> None:
    async with database.write() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SetupError, match="9999"):
        async with open_database(settings):
            pass


async def test_a_step_of_the_schema_may_take_longer_than_a_transaction(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(connection: sa.Connection) -> None:
        time.sleep(1.5)
        upgrade(connection)

    monkeypatch.setattr(database_module, "upgrade", slow)
    async with open_database(settings.model_copy(update={"sql_deadline_s": 1.0})) as database:
        assert not await InteractionLog(database).read(0, 1)


async def test_a_schema_that_takes_too_long_is_said(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "upgrade", lambda _: time.sleep(0.2))
    monkeypatch.setattr(database_module, "_SCHEMA_S", 0.1)
    with pytest.raises(SetupError, match=r"cannot be used: the database took longer than 0\.1 s"):
        async with open_database(settings):
            pass


async def test_servers_that_open_an_empty_database_together_agree_on_its_log(settings: Settings) -> None:
    async def identity() -> str:
        async with open_database(settings) as own:
            return (await InteractionLog(own).extent()).log_id

    assert len(set(await asyncio.gather(*(identity() for _ in range(4))))) == 1
