"""The log in SQL and its projection in a real Redis."""

import asyncio
import math
import random
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from keek_server.clock import now_us
from keek_server.embedded.stack import EmbeddedStack
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.log import Interaction, InteractionLog
from keek_server.interactions.projection import Projection, open_redis
from keek_server.interactions.projector import Projector
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database, read_log_id

LIKE, VIEW, SKIP = InteractionKind.LIKE, InteractionKind.VIEW, InteractionKind.SKIP


@dataclass
class Parts:
    settings: Settings
    database: Database
    log: InteractionLog
    projection: Projection
    projector: Projector


@pytest.fixture
async def parts(stack: EmbeddedStack, tmp_path: Path) -> AsyncIterator[Parts]:
    settings = Settings(
        data_dir=tmp_path,
        redis_url=stack.settings.redis_url,
        history_limit=5,
        seen_limit=8,
        redis_deadline_s=2.0,
    )
    async with open_database(settings) as database, open_redis(settings) as redis:
        log = InteractionLog(database)
        projection = Projection(redis, await read_log_id(database), settings)
        yield Parts(settings, database, log, projection, Projector(log, projection))


def event(
    user: str,
    video: str,
    kind: InteractionKind = LIKE,
    *,
    age_s: float = 0.0,
    event_id: uuid.UUID | None = None,
) -> Interaction:
    return Interaction(event_id or uuid.uuid4(), user, video, kind, now_us() - int(age_s * 1e6))


async def test_an_event_is_stored_once_however_often_it_is_sent(parts: Parts) -> None:
    first = event("u1", "v1")
    assert (await parts.log.append([first])).created == (True,)
    assert (await parts.log.append([first, event("u1", "v2"), first])).created == (False, True, False)
    assert [row.video_id for row in await parts.log.read(0, 10)] == ["v1", "v2"]


async def test_concurrent_appends_are_all_there_in_one_order(parts: Parts) -> None:
    appended = await asyncio.gather(*(parts.log.append([event("u1", f"v{i}")]) for i in range(500)))
    rows = await parts.log.read(0, 1000)
    assert {row.video_id for row in rows} == {f"v{i}" for i in range(500)}
    assert [row.seq for row in rows] == sorted({row.seq for row in rows})
    assert max(a.seq for a in appended) == rows[-1].seq == await parts.log.last_seq()


async def test_what_was_appended_survives_closing_the_database(parts: Parts) -> None:
    await parts.log.append([event("u1", "v1")])
    async with open_database(parts.settings) as again:
        assert [row.video_id for row in await InteractionLog(again).history("u1", 5)] == ["v1"]


async def test_history_and_seen_set_follow_the_log_newest_last(parts: Parts) -> None:
    await parts.log.append([event("u1", f"v{i}", VIEW) for i in range(10)] + [event("u2", "other", SKIP)])
    await parts.projector.catch_up()
    state = await parts.projection.user("u1")
    assert [entry.video_id for entry in state.history] == ["v5", "v6", "v7", "v8", "v9"]
    assert state.seen == {f"v{i}" for i in range(2, 10)}
    assert [entry.kind for entry in (await parts.projection.user("u2")).history] == [SKIP]
    nobody = await parts.projection.user("nobody")
    assert nobody.history == []
    assert nobody.seen == frozenset()


async def test_ids_with_separators_come_back_whole(parts: Parts) -> None:
    await parts.log.append([event("u:{1}", "a:b:c d"), event("u:{1}", "ü{x}")])
    await parts.projector.catch_up()
    assert [e.video_id for e in (await parts.projection.user("u:{1}")).history] == ["a:b:c d", "ü{x}"]


async def test_trending_is_the_exact_decayed_sum_of_what_counts(parts: Parts) -> None:
    """Late and shuffled events, repeats within a window, kinds that weigh nothing."""
    rng = random.Random(3)
    events = [
        event(f"u{rng.randrange(30)}", f"v{rng.randrange(20)}", rng.choice([LIKE, VIEW, SKIP]), age_s=age)
        for age in (rng.uniform(0, 60 * 3600) for _ in range(800))
    ]
    for start in range(0, 800, 100):
        await parts.log.append(events[start : start + 100])
        await parts.projector.catch_up()
    now = now_us()
    half_life_us, window_us = (
        parts.settings.trending_half_life_s * 1e6,
        parts.settings.trending_window_s * 1e6,
    )
    counted: dict[tuple[str, str, InteractionKind, int], Interaction] = {}
    for one in events:
        window = math.floor(one.event_time_us / window_us)
        counted.setdefault((one.user_id, one.video_id, one.kind, window), one)
    exact: dict[str, float] = {}
    for one in counted.values():
        weight = parts.settings.interaction_weights.get(one.kind, 0.0)
        decayed = weight * 0.5 ** ((now - one.event_time_us) / half_life_us)
        exact[one.video_id] = exact.get(one.video_id, 0.0) + decayed
    trending = await parts.projection.trending(0, 100)
    assert [video.video_id for video in trending] == sorted(exact, key=exact.__getitem__, reverse=True)
    for video in trending:
        assert video.score == pytest.approx(exact[video.video_id], rel=1e-4)


async def test_one_user_cannot_make_a_video_trend_alone(parts: Parts) -> None:
    await parts.log.append([event("bot", "v1") for _ in range(500)] + [event("u1", "v2"), event("u2", "v2")])
    await parts.projector.catch_up()
    assert [video.video_id for video in await parts.projection.trending(0, 10)] == ["v2", "v1"]


async def test_what_is_older_than_the_window_does_not_trend(parts: Parts) -> None:
    await parts.log.append([event("u1", "old", age_s=12 * 24 * 3600), event("u1", "new", age_s=3600)])
    await parts.projector.catch_up()
    assert [video.video_id for video in await parts.projection.trending(0, 10)] == ["new"]


async def test_rows_are_applied_once_with_any_number_of_projectors(parts: Parts) -> None:
    others = [Projector(parts.log, parts.projection) for _ in range(4)]
    await parts.log.append([event(f"u{i}", "v1") for i in range(300)])
    await asyncio.gather(*(projector.catch_up() for projector in [parts.projector, *others]))
    (video,) = await parts.projection.trending(0, 10)
    assert video.score == pytest.approx(300, rel=1e-3)
    assert await parts.projection.watermark() == await parts.log.last_seq()


async def test_an_emptied_redis_is_rebuilt_while_running(parts: Parts) -> None:
    await parts.log.append([event("u1", "v1"), event("u2", "v1")])
    running = asyncio.create_task(parts.projector.run())
    try:
        assert await parts.projector.wait_for(2, 5)
        async with open_redis(parts.settings) as redis:
            keys = [key async for key in redis.scan_iter() if key.startswith(parts.projection._prefix)]
            await redis.unlink(*keys)
        async with asyncio.timeout(5):
            while not (await parts.projection.user("u1")).history:
                await asyncio.sleep(0.05)
        assert len(await parts.projection.trending(0, 10)) == 1
    finally:
        running.cancel()


async def test_waiting_for_the_projection_has_an_end(parts: Parts) -> None:
    assert not await parts.projector.wait_for(1, 0.05)
