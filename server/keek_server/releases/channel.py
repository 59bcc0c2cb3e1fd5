"""The channel on which changes of the plan are announced. It saves seconds; nothing depends on it."""

import asyncio
import logging
from collections.abc import Callable

from redis.asyncio import Redis
from redis.exceptions import RedisError

from keek_server.interactions.connection import redis_deadline
from keek_server.interactions.keys import ProjectionKeys

logger = logging.getLogger(__name__)

_RETRY_S = 1.0


class PlanChannel:
    """Announces and hears, through Redis."""

    def __init__(self, redis: Redis, keys: ProjectionKeys, *, deadline_s: float) -> None:
        self._redis = redis
        self._name = keys.plan
        self._deadline_s = deadline_s

    async def announce(self) -> None:
        """Tells all servers to look at the plan.

        Raises:
            UnavailableError: When Redis does not answer; servers look by themselves.
        """
        async with redis_deadline(self._deadline_s):
            await self._redis.publish(self._name, "changed")

    async def listen(self, heard: Callable[[], None]) -> None:
        """Calls `heard` at every announcement, until cancelled."""
        failing = False
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
                    await subscription.subscribe(self._name)
                    # What was announced before it was subscribed.
                    heard()
                    failing = False
                    async for _ in subscription.listen():
                        heard()
            except (RedisError, OSError) as error:
                if not failing:
                    logger.warning("announcements of releases are not heard, polling goes on: %s", error)
                failing = True
            await asyncio.sleep(_RETRY_S)
