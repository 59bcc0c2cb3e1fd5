"""What must hold when the load has ended: of the log, and of its projection."""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from redis.asyncio import Redis

from benchmarks.arena import Arena
from benchmarks.reference import TOLERANCE, Contents, contents_of, differences, expected
from benchmarks.torture.load import Load
from keek_server.embedded import EmbeddedStack
from keek_server.errors import UnavailableError
from keek_server.interactions.connection import open_redis
from keek_server.interactions.keys import ProjectionKeys
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.projection import Projection
from keek_server.interactions.rows import LoggedInteraction
from keek_server.interactions.writer import ProjectionWriter
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.storage.tables import interactions as table

_CATCH_UP_S = 60.0
_POLL_S = 0.1
_ROWS = 5000
_ROWS_A_CALL = (1, 7, 100)
_REPLAY_LEASE_S = 60.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found."""

    lost: int
    """Acknowledged events that the log does not hold as they were sent."""
    double_counted: int
    """Events that stand twice in the log or in a history, or were called new twice, and videos that
    trend more than they should."""
    problems: list[str]
    """How the projection differs from a replay of the log and from a plain computation; for people."""


async def judge(arena: Arena, load: Load, chance: random.Random) -> Verdict:
    """Waits until the projection has caught up with the log, then checks everything.

    Raises:
        TimeoutError: The projection does not catch up.
    """
    settings = arena.settings
    async with open_database(settings) as database, open_redis(settings) as redis:
        log = InteractionLog(database)
        keys = ProjectionKeys.of(settings.redis_prefix, (await log.extent()).log_id)
        actual = await _settled(log, redis, keys, settings)
        lost, doubled = await _compare_log(database, load)
        rows = await _read_all(log)
        replay = await _replay(rows, log, keys, settings, chance)
    wanted = expected(rows, settings)
    problems = [f"replay: {problem}" for problem in differences(actual, replay, tolerance=0.0)]
    problems += [f"reference: {problem}" for problem in differences(actual, wanted)]
    doubled += load.created_again + _twice_in_histories(actual) + _excessive(actual, wanted)
    return Verdict(lost, doubled, problems)


async def _settled(log: InteractionLog, redis: Redis, keys: ProjectionKeys, settings: Settings) -> Contents:
    """The contents of the current generation, once it holds the whole log."""
    projection = Projection(redis, keys, deadline_s=settings.redis_deadline_s)
    last_seq = (await log.extent()).last_seq
    reached: int | str = "unknown"
    try:
        async with asyncio.timeout(_CATCH_UP_S):
            while True:
                try:
                    reached = await projection.watermark()
                except UnavailableError as error:
                    reached = str(error)
                if reached == last_seq:
                    number: Any = await redis.get(keys.current)
                    contents = await contents_of(redis, keys.generation(number))
                    # Another generation may have taken its place meanwhile, and this one be dropped.
                    if await redis.get(keys.current) == number:
                        return contents
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise TimeoutError(f"the log ends at {last_seq}, but its projection is at: {reached}") from None


async def _compare_log(database: Database, load: Load) -> tuple[int, int]:
    """Acknowledged events that are lost, and rows that stand there once too often."""
    async with database.read() as connection:
        rows = (await connection.execute(_ALL)).all()
    logged: dict[UUID, tuple[object, ...]] = {row[0]: tuple(row[1:]) for row in rows}
    lost = sum(
        logged.get(UUID(event.event_id))
        != (event.user_id, event.video_id, event.kind, event.event_time_us, event.region)
        for event in load.acked.values()
    )
    return lost, len(rows) - len(logged)


_ALL = sa.select(
    table.c.event_id, table.c.user_id, table.c.video_id, table.c.kind, table.c.event_time_us, table.c.region
)


async def _read_all(log: InteractionLog) -> list[LoggedInteraction]:
    rows: list[LoggedInteraction] = []
    while part := await log.read(rows[-1].seq if rows else 0, _ROWS):
        rows += part
    return rows


async def _replay(
    rows: list[LoggedInteraction],
    log: InteractionLog,
    keys: ProjectionKeys,
    settings: Settings,
    chance: random.Random,
) -> Contents:
    """What a Redis of its own holds after all rows, applied in pieces of other sizes."""
    own = {
        "data_dir": settings.data_dir / "replay",
        "redis_url": None,
        "projection_lease_s": _REPLAY_LEASE_S,
    }
    async with (
        EmbeddedStack(settings.model_copy(update=own)) as stack,
        open_redis(stack.settings) as redis,
    ):
        writer = ProjectionWriter(redis, keys, stack.settings)
        lease = await writer.acquire()
        assert lease is not None
        number = await writer.begin(lease.token, writer.source(await log.extent()))
        start, seq = 0, 0
        while start < len(rows):
            part = rows[start : start + chance.choice(_ROWS_A_CALL)]
            seq = await writer.apply(lease.token, number, seq, part)
            start += len(part)
        return await contents_of(redis, keys.generation(number))


def _twice_in_histories(contents: Contents) -> int:
    """Entries too many; no two events have the same time."""
    histories = (value for name, value in contents.items() if name.startswith("history:"))
    return sum(len(history) - len(Counter(history)) for history in histories)


def _excessive(actual: Contents, wanted: Contents) -> int:
    """Places in lists of trending and rising videos that are higher than they should be."""
    return sum(
        score > wanted.get(name, {}).get(video, float("-inf")) + TOLERANCE
        for name, board in actual.items()
        if name.startswith(("trending:", "rising:"))
        for video, score in board.items()
    )
