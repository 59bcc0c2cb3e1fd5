"""The exposure log: what was shown is written in batches, nothing twice and nothing lost."""

import math
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
import sqlalchemy as sa

from keek_server import metrics
from keek_server.clock import now_us
from keek_server.errors import UnavailableError
from keek_server.experiments.assignment import NO_ARMS, Assignment
from keek_server.feed.exposures import ExposureLog
from keek_server.feed.types import Candidate, FeedPage, FeedSource, PoolEntry, Selection
from keek_server.storage.database import Database
from keek_server.storage.tables import exposures as table


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

    async def counted(work: Callable[[sa.Connection], None]) -> None:
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

    async def down(_work: Callable[[sa.Connection], None]) -> None:
        raise UnavailableError("the database is not reachable")

    with monkeypatch.context() as patched:
        patched.setattr(database, "transact", down)
        with pytest.raises(UnavailableError):
            await log.flush()
    assert await logged(database) == []
    await log.aclose()
    assert await logged(database) == ["u1"]
