"""The projection of the log in Redis: histories, seen sets and trending.

Redis holds nothing that a replay of the log would not give again: every change goes
through one Lua call that also moves the watermark. All keys share one hash tag, made of
the prefix and the log's identity, so that a Redis Cluster keeps them in one slot and the
projection of another log is never mistaken for this one.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from keek_server.clock import now_us
from keek_server.errors import SetupError, UnavailableError
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.log import LoggedInteraction
from keek_server.settings import Settings
from keek_server.startup import wait_until_ready

_APPLY_DEADLINE_S = 10.0


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


@dataclass(frozen=True, slots=True)
class TrendingVideo:
    """A video and its decayed weight at the time of asking."""

    video_id: str
    score: float


class Projection:
    """Reads and advances the projection of one log."""

    def __init__(self, redis: Redis, log_id: str, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._prefix = f"{{{settings.redis_prefix}:{log_id[:12]}}}:"
        self._watermark = f"{self._prefix}watermark"
        script = resources.files(__package__).joinpath("project.lua").read_text("utf-8")
        self._apply = redis.register_script(script)
        self._log2_weights = {
            kind: math.log2(weight) for kind, weight in settings.interaction_weights.items() if weight > 0
        }
        # What one interaction of the lightest kind is worth: less than that a window ago is nothing.
        self._lightest = min(self._log2_weights.values(), default=0.0)

    async def watermark(self) -> int:
        """Sequence number of the last row applied; 0 in an empty Redis."""
        async with self._deadline(self._settings.redis_deadline_s):
            return int(await self._redis.get(self._watermark) or 0)

    async def apply(self, after_seq: int, rows: Sequence[LoggedInteraction]) -> int:
        """Applies rows read behind `after_seq`, unless the watermark has moved meanwhile.

        Returns:
            The watermark that stands now; go on reading from there.
        """
        settings = self._settings
        arguments: list[Any] = [
            after_seq,
            rows[-1].seq,
            self._prefix,
            settings.history_limit,
            settings.seen_limit,
            settings.trending_limit,
            settings.trending_half_life_s,
            settings.trending_window_s,
        ]
        for row in rows:
            log2_weight = self._log2_weights.get(row.kind, "")
            arguments += (row.seq, row.user_id, row.video_id, int(row.kind), row.event_time_us, log2_weight)
        async with self._deadline(_APPLY_DEADLINE_S):
            return int(await self._apply(keys=[self._watermark], args=arguments))

    async def user(self, user_id: str) -> UserState:
        """A user's history and seen set; both empty for a user who is not known."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.lrange(f"{self._prefix}history:{user_id}", 0, -1)
        pipeline.zrange(f"{self._prefix}seen:{user_id}", 0, -1)
        async with self._deadline(self._settings.redis_deadline_s):
            history, seen = await pipeline.execute()
        return UserState([_entry(raw) for raw in history], frozenset(seen))

    async def trending(self, offset: int, limit: int) -> list[TrendingVideo]:
        """Trending videos, strongest first; those that a window without events leaves behind are out."""
        now_s = now_us() / 1e6
        zero = now_s / self._settings.trending_half_life_s
        floor = zero - self._settings.trending_window_s / self._settings.trending_half_life_s + self._lightest
        async with self._deadline(self._settings.redis_deadline_s):
            rows: Any = await self._redis.zrevrangebyscore(
                f"{self._prefix}trending", "+inf", floor, start=offset, num=limit, withscores=True
            )
        return [TrendingVideo(video, 2.0 ** (score - zero)) for video, score in rows]

    @asynccontextmanager
    async def _deadline(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise UnavailableError(f"Redis took longer than {seconds * 1000:.0f} ms") from error
        except (RedisError, OSError) as error:
            raise UnavailableError(f"Redis does not answer: {error}") from error


@asynccontextmanager
async def open_redis(settings: Settings) -> AsyncIterator[Redis]:
    """A client of the Redis at `redis_url`, closed at the end.

    Raises:
        SetupError: When it does not answer within `startup_timeout_s`.
    """
    if settings.redis_url is None:
        raise SetupError("no Redis given: set KEEK_REDIS_URL, or start with 'keek-server up'")
    # One repetition, at once: a pooled connection does not know yet that Redis was restarted.
    redis = Redis.from_url(settings.redis_url, decode_responses=True, retry=Retry(NoBackoff(), 1))
    try:
        await wait_until_ready(
            f"Redis at {settings.redis_url} (KEEK_REDIS_URL)",
            redis.ping,
            (RedisError,),
            timeout_s=settings.startup_timeout_s,
        )
        yield redis
    finally:
        await redis.aclose()


def _entry(raw: str) -> HistoryEntry:
    kind, event_time_us, video_id = raw.split(":", 2)
    return HistoryEntry(video_id, InteractionKind(int(kind)), int(event_time_us))
