"""Reading the projection of the log in Redis: histories, seen sets and trending.

Redis holds nothing that a replay of the log would not give again. It may hold several
generations while one is built; readers use the current one, which is complete, and check with
every answer that it still is the current one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from keek_server.errors import UnavailableError
from keek_server.interactions.connection import redis_deadline
from keek_server.interactions.keys import ProjectionKeys
from keek_server.interactions.kinds import KINDS, InteractionKind

Queue = Callable[[Pipeline, str], object]
"""Puts commands into a pipeline, given the key prefix of a generation."""

_TRIES = 3


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One interaction of a user's history."""

    video_id: str
    kind: InteractionKind
    event_time_us: int


@dataclass(frozen=True, slots=True)
class UserState:
    """What the projection knows of a user."""

    history: list[HistoryEntry]
    """Newest last."""
    seen: frozenset[str]
    """Videos the user interacted with."""


class Projection:
    """Reads the current generation of one log's projection."""

    def __init__(self, redis: Redis, keys: ProjectionKeys, *, deadline_s: float) -> None:
        """
        Args:
            redis: Where the projection is.
            keys: Of the log.
            deadline_s: For one round trip.
        """
        self._redis = redis
        self._keys = keys
        self._deadline_s = deadline_s
        self._generation = "0"

    async def watermark(self) -> int:
        """Sequence number of the last row that readers see.

        Raises:
            UnavailableError: When Redis is down, or the projection is not complete yet.
        """
        (seq,) = await self.read(lambda pipeline, prefix: pipeline.hget(f"{prefix}state", "seq"))
        return int(seq or 0)

    async def user(self, user_id: str) -> UserState:
        """A user's history and seen set; both empty for a user who is not known.

        Raises:
            UnavailableError: When Redis is down, or the projection is not complete yet.
        """

        def queue(pipeline: Pipeline, prefix: str) -> None:
            pipeline.lrange(f"{prefix}history:{user_id}", 0, -1)
            pipeline.zrange(f"{prefix}seen:{user_id}", 0, -1)

        history, seen = await self.read(queue)
        return UserState([_entry(raw) for raw in history], frozenset(seen))

    async def histories(self, user_ids: Sequence[str], length: int) -> list[list[HistoryEntry]]:
        """The latest `length` interactions of each user, newest last, in one round trip.

        Raises:
            UnavailableError: When Redis is down, or the projection is not complete yet.
        """

        def queue(pipeline: Pipeline, prefix: str) -> None:
            for user_id in user_ids:
                pipeline.lrange(f"{prefix}history:{user_id}", -length, -1)

        return [[_entry(raw) for raw in history] for history in await self.read(queue)]

    async def read(self, queue: Queue) -> list[Any]:
        """The answers of a generation to what `queue` asks, in one round trip.

        Raises:
            UnavailableError: When Redis is down, or the projection is not complete yet.
        """
        for _ in range(_TRIES):
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.get(self._keys.current)
            queue(pipeline, self._keys.generation(self._generation))
            async with redis_deadline(self._deadline_s):
                current, *answers = await pipeline.execute()
            if current is None:
                raise UnavailableError("Redis holds no complete projection: it is being built")
            if current == self._generation:
                return answers
            self._generation = current
        raise UnavailableError("the projection is being replaced")


def _entry(raw: str) -> HistoryEntry:
    kind, event_time_us, video_id = raw.split(":", 2)
    return HistoryEntry(video_id, KINDS[int(kind)], int(event_time_us))
