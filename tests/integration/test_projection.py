"""The projection in a real Redis: exactly what a replay of the log gives, whatever happens."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from background import beside
from benchmarks.reference import differences, expected
from projecting import SKIP, VIEW, Parts, event, open_parts
from projection_steps import contents, many_events, project, small_settings
from redis.asyncio.client import Pipeline

from keek_server.embedded.stack import EmbeddedStack
from keek_server.errors import UnavailableError
from keek_server.interactions import writer as writer_module
from keek_server.interactions.projection import Projection


@pytest.fixture
async def parts(stack: EmbeddedStack, tmp_path: Path) -> AsyncIterator[Parts]:
    async with open_parts(small_settings(stack, tmp_path)) as opened:
        yield opened


@contextmanager
def rows_a_call(count: int) -> Iterator[None]:
    before = writer_module.ROWS_A_CALL
    writer_module.ROWS_A_CALL = count
    try:
        yield
    finally:
        writer_module.ROWS_A_CALL = before


async def test_it_is_what_a_plain_computation_of_the_log_gives(parts: Parts) -> None:
    await parts.log.append(many_events(900))
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
    await parts.log.append(many_events(600))
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
    # Nobody renews this lease.
    parts.settings = parts.settings.model_copy(update={"projection_lease_s": 60.0})
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


@pytest.mark.parametrize("known", ["0", "7"])
async def test_reads_at_once_that_learn_of_a_generation_together_all_have_its_rows(
    parts: Parts, known: str
) -> None:
    """As on a server that has just started, or whose generation was replaced under traffic."""
    await parts.log.append([event("u1", f"v{i}", VIEW) for i in range(3)])
    await project(parts)
    fresh = Projection(parts.redis, parts.keys, deadline_s=parts.settings.redis_deadline_s)
    fresh._generation = known
    state, watermark, *histories = await asyncio.gather(
        fresh.user("u1"), fresh.watermark(), *(fresh.histories(["u1"], 5) for _ in range(4))
    )
    assert state.seen == {"v0", "v1", "v2"}
    assert watermark == 3
    assert [[len(history) for history in read] for read in [[state.history], *histories]] == [[3]] * 5


async def test_reads_that_wait_go_together_and_a_refused_one_is_nobody_elses(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    appended = await parts.log.append([event(f"u{n}", f"v{n}") for n in range(20)])
    projector = parts.projector()
    async with beside(projector.run()):
        assert await projector.wait_for(appended.seq, 60)
    prefix = parts.keys.generation(await parts.redis.get(parts.keys.current))
    await parts.redis.set(f"{prefix}history:broken", "not a list")
    trips = []
    execute = Pipeline.execute

    async def counted(pipeline: Pipeline, raise_on_error: bool = True) -> list[Any]:
        # The class is everybody's: what still runs for another test is not counted.
        if pipeline.connection_pool is parts.redis.connection_pool:
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
