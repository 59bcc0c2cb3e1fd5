"""The projection begun anew: on demand, and whenever Redis or the log is not what it was."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from background import beside
from patience import eventually
from projecting import VIEW, Parts, event, open_parts
from projection_steps import (
    contents,
    many_events,
    project,
    running,
    small_settings,
    time_out_lease,
)

from keek_server.embedded.stack import EmbeddedStack
from keek_server.errors import UnavailableError
from keek_server.interactions.log import LogExtent
from keek_server.interactions.rebuild import rebuild_projection


@pytest.fixture
async def parts(stack: EmbeddedStack, tmp_path: Path) -> AsyncIterator[Parts]:
    async with open_parts(small_settings(stack, tmp_path)) as opened:
        yield opened


async def has_a_history(parts: Parts) -> bool:
    """Whether readers see what u1 did."""
    with suppress(UnavailableError):
        return bool((await parts.projection.user("u1")).history)
    return False


async def test_an_emptied_redis_is_rebuilt_while_running(parts: Parts) -> None:
    await parts.log.append([event("u1", "v1"), event("u2", "v1")])
    projector = parts.projector()
    async with running(projector):
        assert await projector.wait_for(2, 60)
        await parts.redis.flushdb()
        with pytest.raises(UnavailableError):
            await parts.projection.user("u1")
        await eventually(lambda: has_a_history(parts))
        assert len((await parts.trending.top(10)).videos) == 1


async def test_an_emptied_redis_is_rebuilt_as_soon_as_the_log_can_be_read_again(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    await parts.log.append([event("u1", "v1")])
    projector = parts.projector()
    extent, tries = parts.log.extent, 0

    async def lost() -> LogExtent:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise UnavailableError("the database is not reachable")
        return await extent()

    async with running(projector):
        assert await projector.wait_for(1, 60)
        # Longer than the test waits: it is not the next inspection that does it.
        monkeypatch.setattr("keek_server.interactions.projector._INSPECT_S", 300.0)
        monkeypatch.setattr(parts.log, "extent", lost)
        await parts.redis.flushdb()
        await eventually(lambda: has_a_history(parts))
    assert tries >= 3


async def test_a_rebuild_on_demand_serves_on_and_sweeps_up(parts: Parts) -> None:
    await parts.log.append(many_events(800))
    projector = parts.projector()
    async with running(projector):
        assert await projector.wait_for(800, 60)
        before = await contents(parts)
        failures = 0

        async def read() -> None:
            nonlocal failures
            while True:
                try:
                    await parts.projection.user("u1")
                except UnavailableError:
                    failures += 1
                await asyncio.sleep(0)

        async with beside(read()):
            steps = [step async for step in rebuild_projection(parts.settings)]
        assert steps[-1].done
        assert steps[-1].seq == steps[-1].last_seq == 800
        assert failures == 0
        assert await contents(parts) == before

        async def swept() -> bool:
            return await parts.writer().generations() == [2]

        await eventually(swept)
        assert not [key async for key in parts.redis.scan_iter(match=f"{parts.keys.prefix}1:*")]


async def test_a_rebuild_needs_no_server(parts: Parts) -> None:
    await parts.log.append([event("u1", "v1")])
    steps = [step async for step in rebuild_projection(parts.settings)]
    assert steps[-1].done
    assert (await parts.projection.user("u1")).seen == {"v1"}


async def test_other_settings_build_another_projection_while_the_old_one_is_read(parts: Parts) -> None:
    await parts.log.append([event("u1", f"v{i}") for i in range(20)])
    await project(parts)
    assert len((await parts.projection.user("u1")).history) == 5
    parts.settings = parts.settings.model_copy(update={"history_limit": 7})
    projector = parts.projector()
    async with running(projector):

        async def longer() -> bool:
            return len((await parts.projection.user("u1")).history) == 7

        await eventually(longer)


async def test_a_log_restored_from_an_older_backup_is_noticed(parts: Parts) -> None:
    await parts.log.append([event("u1", "v1"), event("u1", "lost")])
    await project(parts)
    async with parts.database.write() as connection:
        await connection.exec_driver_sql("DELETE FROM interactions WHERE video_id = 'lost'")
        await connection.exec_driver_sql("UPDATE sqlite_sequence SET seq = 1 WHERE name = 'interactions'")
    await parts.log.append([event("u1", "other")])
    await project(parts)

    async def replaced() -> bool:
        with suppress(UnavailableError):
            return (await parts.projection.user("u1")).seen == {"v1", "other"}
        return False

    async with running(parts.projector()):
        await eventually(replaced)


async def test_what_retention_removed_is_gone_from_the_projection(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keek_server.interactions.projector._INSPECT_S", 0.1)
    monkeypatch.setattr("keek_server.interactions.log.now_us", lambda: 0)
    await parts.log.append([event("u1", "old")])
    monkeypatch.undo()
    monkeypatch.setattr("keek_server.interactions.projector._INSPECT_S", 0.1)
    await parts.log.append([event("u1", "new")])
    projector = parts.projector()
    async with running(projector):
        assert await projector.wait_for(2, 60)
        assert (await parts.projection.user("u1")).seen == {"old", "new"}
        while await parts.log.prune(10**15):
            pass

        async def gone() -> bool:
            return (await parts.projection.user("u1")).seen == {"new"}

        await eventually(gone)


async def test_a_projection_that_redis_lost_while_it_was_built_is_begun_again(parts: Parts) -> None:
    await parts.log.append(many_events(300))
    projector = parts.projector()
    # So that the builder's lease does not run out before it is said to.
    parts.settings = parts.settings.model_copy(update={"projection_lease_s": 60.0})
    writer = parts.writer()
    lease = await writer.acquire()
    assert lease
    number = await writer.begin(lease.token, "half built")
    await writer.apply(lease.token, number, 0, (await parts.log.read(0, 100)))
    # The builder dies here.
    await time_out_lease(parts)
    async with running(projector):
        assert await projector.wait_for(300, 60)
        current = await parts.writer().current()
        assert current is not None
        assert current.number > number


async def test_a_generation_that_a_projector_left_when_it_died_is_swept_up_by_its_successor(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: int) -> None:
        """The projector dies before it has swept up."""

    await parts.log.append([event("u1", "v1")])
    first = parts.projector()
    monkeypatch.setattr(first, "_clean_before", never)
    async with running(first):
        assert await first.wait_for(1, 60)
        await parts.writer().want_rebuild()

        async def replaced() -> bool:
            return await parts.redis.get(parts.keys.current) == "2"

        await eventually(replaced)
    assert await parts.writer().generations() == [1, 2]
    monkeypatch.setattr("keek_server.interactions.projector._INSPECT_S", 0.1)

    async def swept() -> bool:
        return await parts.writer().generations() == [2]

    async with running(parts.projector()):
        await eventually(swept)
    assert not [key async for key in parts.redis.scan_iter(match=f"{parts.keys.prefix}1:*")]


async def test_a_rebuild_is_done_also_while_interactions_pour_in(parts: Parts) -> None:
    await parts.log.append(many_events(300))
    projector = parts.projector()

    async def pour() -> None:
        while True:
            await parts.log.append([event("u1", "v1", VIEW)])
            projector.notify()

    async with running(projector):
        assert await projector.wait_for(300, 60)
        async with beside(pour()), asyncio.timeout(60):
            steps = [step async for step in rebuild_projection(parts.settings)]
        assert steps[-1].done
        last_seq = (await parts.log.extent()).last_seq
        assert await projector.wait_for(last_seq, 60)


async def test_a_log_that_lost_its_newest_rows_under_a_running_server_is_noticed(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keek_server.interactions.projector._INSPECT_S", 0.1)
    await parts.log.append([event("u1", "v1"), event("u1", "lost")])
    projector = parts.projector()
    async with running(projector):
        assert await projector.wait_for(2, 60)
        async with parts.database.write() as connection:
            await connection.exec_driver_sql("DELETE FROM interactions WHERE video_id = 'lost'")

        async def noticed() -> bool:
            with suppress(UnavailableError):
                return (await parts.projection.user("u1")).seen == {"v1"}
            return False

        await eventually(noticed)
        generations = await parts.writer().generations()
        await asyncio.sleep(0.5)
        assert max(await parts.writer().generations()) == max(generations)
