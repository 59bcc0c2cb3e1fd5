"""The projection in a real Redis: exactly what a replay of the log gives, whatever happens."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from background import beside
from benchmarks.reference import Contents, contents_of, differences, expected
from projecting import LIKE, SKIP, VIEW, Parts, event, open_parts
from redis.asyncio.client import Pipeline

from keek_server.embedded.stack import EmbeddedStack
from keek_server.errors import UnavailableError
from keek_server.interactions import writer as writer_module
from keek_server.interactions.kinds import TrendingScope
from keek_server.interactions.projector import Projector
from keek_server.interactions.rebuild import rebuild_projection
from keek_server.interactions.writer import LeaseLostError
from keek_server.settings import Settings

LEASE_S = 0.6


@pytest.fixture
def settings(stack: EmbeddedStack, tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path,
        redis_url=stack.settings.redis_url,
        history_limit=5,
        seen_limit=8,
        redis_deadline_s=2.0,
        projection_lease_s=LEASE_S,
        trending_scopes=frozenset(TrendingScope),
    )


@pytest.fixture
async def parts(settings: Settings) -> AsyncIterator[Parts]:
    async with open_parts(settings) as opened:
        yield opened


@asynccontextmanager
async def running(*projectors: Projector) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(projector.run()) for projector in projectors]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def project(parts: Parts) -> None:
    """Brings the projection up to date with the log."""
    projector = parts.projector()
    async with running(projector):
        assert await projector.wait_for((await parts.log.extent()).last_seq, 10)


async def eventually(condition: object, *, within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # type: ignore[operator]
            await asyncio.sleep(0.02)


async def contents(parts: Parts) -> Contents:
    current = await parts.writer().current()
    assert current is not None
    return await contents_of(parts.redis, parts.keys.generation(current.number))


def many_events(count: int, seed: int = 3) -> list[object]:
    rng = random.Random(seed)
    return [
        event(
            f"u{rng.randrange(40)}",
            f"v{rng.randrange(30)}",
            rng.choice([LIKE, LIKE, VIEW, SKIP]),
            age_s=rng.uniform(0, 20 * 24 * 3600),
            region=rng.choice(["", "de", "fr"]),
            tags=tuple(rng.sample(["cats", "wood", "sea"], rng.randrange(3))),
        )
        for _ in range(count)
    ]


@contextmanager
def rows_a_call(count: int) -> Iterator[None]:
    before = writer_module.ROWS_A_CALL
    writer_module.ROWS_A_CALL = count
    try:
        yield
    finally:
        writer_module.ROWS_A_CALL = before


async def test_it_is_what_a_plain_computation_of_the_log_gives(parts: Parts) -> None:
    await parts.log.append(many_events(900))  # type: ignore[arg-type]
    await project(parts)
    wanted = expected(await parts.log.read(0, 1000), parts.settings)
    actual = await contents(parts)
    # What is remembered as counted is bounded, too, but by another rule than the reference's.
    for name in [name for name in actual if name.startswith("counted:")]:
        assert actual.pop(name).items() <= wanted.pop(name).items()
    assert differences(actual, wanted) == []
    assert {"trending:", "trending:tag:cats", "trending:region:de", "rising:"} <= actual.keys()


async def test_a_replay_gives_every_bit_again_however_the_rows_are_split(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Boards that overflow, so that what is trimmed has to be the same, too.
    tight = parts.settings.model_copy(update={"trending_limit": 5, "trending_scope_limit": 3})
    script = Path(writer_module.__file__).with_name("project.lua").read_text()
    monkeypatch.setattr(
        writer_module,
        "load_script",
        lambda name: (
            script.replace("local SLACK = 1000", "local SLACK = 4")
            if name == "project"
            else Path(writer_module.__file__).with_name(f"{name}.lua").read_text()
        ),
    )
    parts.settings = tight
    await parts.log.append(many_events(600))  # type: ignore[arg-type]
    dumps = []
    for split in (1, 7, 100, 600):
        with rows_a_call(split):
            await parts.writer().want_rebuild()
            await project(parts)
            dumps.append(await contents(parts))
            await parts.redis.flushdb()
    assert len(dumps[0]["trending:"]) <= 9
    assert all(dump == dumps[0] for dump in dumps[1:])


async def test_history_and_seen_set_follow_the_log_newest_last(parts: Parts) -> None:
    await parts.log.append([event("u1", f"v{i}", VIEW) for i in range(10)] + [event("u2", "other", SKIP)])
    await project(parts)
    state = await parts.projection.user("u1")
    assert [entry.video_id for entry in state.history] == ["v5", "v6", "v7", "v8", "v9"]
    assert state.seen == {f"v{i}" for i in range(2, 10)}
    assert [entry.kind for entry in (await parts.projection.user("u2")).history] == [SKIP]
    nobody = await parts.projection.user("nobody")
    assert list(nobody.history) == []
    assert nobody.seen == frozenset()


async def test_ids_with_separators_come_back_whole(parts: Parts) -> None:
    await parts.log.append([event("u:{1}", "a:b:c d"), event("u:{1}", 'ü{x}"\\')])
    await project(parts)
    history = (await parts.projection.user("u:{1}")).history
    assert [entry.video_id for entry in history] == ["a:b:c d", 'ü{x}"\\']


async def test_readers_are_refused_until_the_first_generation_is_complete(parts: Parts) -> None:
    await parts.log.append([event("u1", "v1")])
    writer = parts.writer()
    lease = await writer.acquire()
    assert lease
    extent = await parts.log.extent()
    number = await writer.begin(lease.token, writer.source(extent))
    await writer.apply(lease.token, number, 0, await parts.log.read(0, 10))
    with pytest.raises(UnavailableError, match="being built"):
        await parts.projection.user("u1")
    await writer.publish(lease.token, number)
    assert (await parts.projection.user("u1")).seen == {"v1"}


async def test_one_of_several_projectors_acts_and_another_takes_over(parts: Parts) -> None:
    first, second = parts.projector(), parts.projector()
    async with running(second):
        async with running(first):
            await parts.log.append([event("u1", "v1")])
            assert await asyncio.gather(first.wait_for(1, 5), second.wait_for(1, 5)) == [True, True]
            assert [first.holds_lease, second.holds_lease].count(True) == 1
        await parts.log.append([event("u1", "v2")])
        assert await second.wait_for(2, 5)
        assert second.holds_lease


async def test_a_projector_that_dies_is_replaced_within_its_lease(parts: Parts) -> None:
    dead = parts.writer()
    assert await dead.acquire()
    projector = parts.projector()
    async with running(projector):
        await parts.log.append([event("u1", "v1")])
        assert not await projector.wait_for(1, LEASE_S / 2)
        assert await projector.wait_for(1, 3 * LEASE_S + 1)


async def test_who_lost_the_lease_can_no_longer_write(parts: Parts) -> None:
    await parts.log.append([event("u1", f"v{i}") for i in range(3)])
    await project(parts)
    current = await parts.writer().current()
    assert current is not None
    old, new = parts.writer(), parts.writer()
    lease = await old.acquire()
    assert lease
    await old.release(lease.token)
    newer = await new.acquire()
    assert newer
    assert int(newer.token.split(":")[0]) > int(lease.token.split(":")[0])
    await parts.log.append([event("u1", "v9")])
    rows = await parts.log.read(3, 10)
    for write in (
        old.apply(lease.token, current.number, 3, rows),
        old.publish(lease.token, 99),
        old.begin(lease.token, "x"),
        old.retract(lease.token),
    ):
        with pytest.raises(LeaseLostError):
            await write
    assert await new.apply(newer.token, current.number, 3, rows) == 4
    # The same rows again, as after an answer that was lost.
    assert await new.apply(newer.token, current.number, 3, rows) == 4
    assert [entry.video_id for entry in (await parts.projection.user("u1")).history][-1] == "v9"
    assert (await contents(parts))["seen:u1"]["v9"] == 4.0


async def test_an_emptied_redis_is_rebuilt_while_running(parts: Parts) -> None:
    await parts.log.append([event("u1", "v1"), event("u2", "v1")])
    projector = parts.projector()
    async with running(projector):
        assert await projector.wait_for(2, 5)
        await parts.redis.flushdb()
        with pytest.raises(UnavailableError):
            await parts.projection.user("u1")

        async def back() -> bool:
            with suppress(UnavailableError):
                return bool((await parts.projection.user("u1")).history)
            return False

        await eventually(back)
        assert len((await parts.trending.top(10)).videos) == 1


async def test_a_rebuild_on_demand_serves_on_and_sweeps_up(parts: Parts) -> None:
    await parts.log.append(many_events(800))  # type: ignore[arg-type]
    projector = parts.projector()
    async with running(projector):
        assert await projector.wait_for(800, 10)
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
        assert await projector.wait_for(2, 5)
        assert (await parts.projection.user("u1")).seen == {"old", "new"}
        while await parts.log.prune(10**15):
            pass

        async def gone() -> bool:
            return (await parts.projection.user("u1")).seen == {"new"}

        await eventually(gone)


async def test_waiting_for_the_projection_has_an_end(parts: Parts) -> None:
    assert not await parts.projector().wait_for(1, 0.05)


async def test_a_projection_that_redis_lost_while_it_was_built_is_begun_again(
    parts: Parts, settings: Settings
) -> None:
    await parts.log.append(many_events(300))  # type: ignore[arg-type]
    writer = parts.writer()
    lease = await writer.acquire()
    assert lease
    number = await writer.begin(lease.token, "half built")
    await writer.apply(lease.token, number, 0, (await parts.log.read(0, 100)))
    # The builder dies here.
    projector = parts.projector()
    async with running(projector):
        assert await projector.wait_for(300, 5)
        current = await parts.writer().current()
        assert current is not None
        assert current.number > number


async def test_a_rebuild_is_done_also_while_interactions_pour_in(parts: Parts) -> None:
    await parts.log.append(many_events(300))  # type: ignore[arg-type]
    projector = parts.projector()

    async def pour() -> None:
        while True:
            await parts.log.append([event("u1", "v1", VIEW)])
            projector.notify()

    async with running(projector):
        assert await projector.wait_for(300, 10)
        async with beside(pour()), asyncio.timeout(15):
            steps = [step async for step in rebuild_projection(parts.settings)]
        assert steps[-1].done
        last_seq = (await parts.log.extent()).last_seq
        assert await projector.wait_for(last_seq, 5)


async def test_a_log_that_lost_its_newest_rows_under_a_running_server_is_noticed(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keek_server.interactions.projector._INSPECT_S", 0.1)
    await parts.log.append([event("u1", "v1"), event("u1", "lost")])
    projector = parts.projector()
    async with running(projector):
        assert await projector.wait_for(2, 5)
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


async def test_reads_that_wait_go_together_and_a_refused_one_is_nobody_elses(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended = await parts.log.append([event(f"u{n}", f"v{n}") for n in range(20)])
    projector = parts.projector()
    async with beside(projector.run()):
        assert await projector.wait_for(appended.seq, 10)
    prefix = parts.keys.generation(await parts.redis.get(parts.keys.current))
    await parts.redis.set(f"{prefix}history:broken", "not a list")
    trips = []
    execute = Pipeline.execute

    async def counted(pipeline: Pipeline, raise_on_error: bool = True) -> list[Any]:
        trips.append(len(pipeline))
        return await execute(pipeline, raise_on_error)

    await parts.projection.user("u0")
    monkeypatch.setattr(Pipeline, "execute", counted)
    users = [asyncio.create_task(parts.projection.user(f"u{n}")) for n in range(20)]
    broken = asyncio.create_task(parts.projection.user("broken"))
    left = asyncio.create_task(parts.projection.user("u1"))
    await asyncio.sleep(0)
    left.cancel()
    states = await asyncio.gather(*users)
    assert [state.seen for state in states] == [{f"v{n}"} for n in range(20)]
    assert [[entry.video_id for entry in state.history] for state in states] == [[f"v{n}"] for n in range(20)]
    with pytest.raises(UnavailableError):
        await broken
    # The generation, and two commands a user: but for the one who left.
    assert trips == [1 + 2 * 21]
