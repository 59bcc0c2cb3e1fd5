"""Reading the projection of the log in Redis: histories, seen sets and trending.

Redis holds nothing that a replay of the log would not give again. It may hold several
generations while one is built; readers use the current one, which is complete, and check with
every answer that it still is the current one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ResponseError

from keek_server.batching import Batcher
from keek_server.breaker import Breaker
from keek_server.errors import UnavailableError
from keek_server.interactions.connection import redis_deadline
from keek_server.interactions.history import History
from keek_server.interactions.keys import ProjectionKeys

Queue = Callable[[Pipeline, str], object]
"""Puts commands into a pipeline, given the key prefix of a generation."""

Answers = list[Any]

_TRIES: Final = 3
_MAX_BATCH: Final = 64
_MAX_WAITING: Final = 4096


@dataclass(frozen=True, slots=True)
class UserState:
    """What the projection knows of a user."""

    history: History
    """Newest last."""
    seen: frozenset[str]
    """Videos the user interacted with."""


class Projection:
    """Reads the current generation of one log's projection."""

    def __init__(
        self, redis: Redis, keys: ProjectionKeys, *, deadline_s: float, breaker: Breaker | None = None
    ) -> None:
        """
        Args:
            redis: Where the projection is.
            keys: Of the log.
            deadline_s: For one round trip.
            breaker: Of what feeds ask this Redis; one of its own by default.
        """
        self._redis = redis
        self._keys = keys
        self._deadline_s = deadline_s
        self._generation = "0"
        self._breaker = breaker or Breaker("Redis", "redis", deadline_s=deadline_s)
        self._batcher: Batcher[Queue, Answers | ResponseError] = Batcher(
            self._read_for_feeds, max_weight=_MAX_BATCH, max_waiting=_MAX_WAITING, max_delay_s=deadline_s
        )

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
            OverloadedError: When too many wait for it.
        """

        def queue(pipeline: Pipeline, prefix: str) -> None:
            pipeline.lrange(f"{prefix}history:{user_id}", 0, -1)
            pipeline.zrange(f"{prefix}seen:{user_id}", 0, -1)

        history, seen = await self.read_together(queue)
        return UserState(History(history), frozenset(seen))

    async def histories(self, user_ids: Sequence[str], length: int) -> list[History]:
        """The latest `length` interactions of each user, newest last, in one round trip.

        Raises:
            UnavailableError: When Redis is down, or the projection is not complete yet.
        """

        def queue(pipeline: Pipeline, prefix: str) -> None:
            for user_id in user_ids:
                pipeline.lrange(f"{prefix}history:{user_id}", -length, -1)

        return [History(history) for history in await self.read(queue)]

    async def read_together(self, queue: Queue) -> Answers:
        """As `read`, in one round trip with what else is asked while the one before is under way: for the few
        commands of a feed.

        Raises:
            UnavailableError: When Redis is down, or the projection is not complete yet.
            OverloadedError: When too many wait already.
        """
        self._breaker.check(lambda: self._batcher.submit(queue))
        answers = await self._batcher.submit(queue)
        if isinstance(answers, ResponseError):
            raise UnavailableError("Redis does not answer") from answers
        return answers

    async def read(self, queue: Queue) -> Answers:
        """The answers of a generation to what `queue` asks, in one round trip of its own.

        Raises:
            UnavailableError: When Redis is down, or the projection is not complete yet.
        """
        (answers,) = await self._read_batch([queue])
        if isinstance(answers, ResponseError):
            raise UnavailableError("Redis does not answer") from answers
        return answers

    async def _read_for_feeds(self, queues: Sequence[Queue]) -> list[Answers | ResponseError]:
        return await self._read_batch(queues, self._breaker)

    async def _read_batch(
        self, queues: Sequence[Queue], breaker: Breaker | None = None
    ) -> list[Answers | ResponseError]:
        """The answers to each; for one that Redis refuses, the first error, which is no other's."""
        for _ in range(_TRIES):
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.get(self._keys.current)
            # As it is asked for: another read may learn of a newer one before this one's answer is here.
            generation = self._generation
            prefix = self._keys.generation(generation)
            ends = [len(pipeline)]
            for queue in queues:
                queue(pipeline, prefix)
                ends.append(len(pipeline))
            async with redis_deadline(self._deadline_s, breaker):
                answers = await pipeline.execute(raise_on_error=False)
            current = answers[0]
            if isinstance(current, ResponseError):
                raise UnavailableError("Redis does not answer") from current
            if current is None:
                raise UnavailableError("Redis holds no complete projection: it is being built")
            if current == generation:
                return [_of_one(answers[start:end]) for start, end in pairwise(ends)]
            self._generation = current
        raise UnavailableError("the projection is being replaced")


def _of_one(answers: Answers) -> Answers | ResponseError:
    return next((answer for answer in answers if isinstance(answer, ResponseError)), answers)
