"""The client of Redis: opened once, every call with a deadline, every error translated."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from keek_server.breaker import Breaker
from keek_server.errors import SetupError, UnavailableError
from keek_server.settings import Settings
from keek_server.startup import wait_until_ready

_PASSWORD = re.compile(r":[^:@/]*@")


@asynccontextmanager
async def open_redis(settings: Settings) -> AsyncIterator[Redis]:
    """A client of the Redis at `redis_url`, closed at the end.

    Raises:
        SetupError: When it does not answer within `startup_timeout_s`.
    """
    if settings.redis_url is None:
        raise SetupError("no Redis given: set KEEK_REDIS_URL, or start with 'keek-server up'")
    redis = Redis.from_url(
        settings.redis_url,
        decode_responses=True,
        # One repetition, at once: a pooled connection does not know yet that Redis was restarted.
        retry=Retry(NoBackoff(), 1),
        # `redis_deadline` bounds every call. The client's own timeout makes a task for each command,
        # and its asyncio.wait_for loses a cancellation that comes when the command is sent.
        socket_timeout=None,
    )
    try:
        await wait_until_ready(
            f"Redis at {_PASSWORD.sub(':***@', settings.redis_url)} (KEEK_REDIS_URL)",
            redis.ping,
            (RedisError,),
            timeout_s=settings.startup_timeout_s,
        )
        yield redis
    finally:
        await redis.aclose()


@asynccontextmanager
async def redis_deadline(seconds: float, breaker: Breaker | None = None) -> AsyncIterator[None]:
    """Raises UnavailableError when what runs inside takes longer, or Redis fails; a breaker learns of it."""
    with nullcontext() if breaker is None else breaker.asking():
        async with _redis_deadline(seconds):
            yield


@asynccontextmanager
async def _redis_deadline(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise UnavailableError(f"Redis took longer than {seconds * 1000:.0f} ms") from error
    except (RedisError, OSError) as error:
        raise UnavailableError("Redis does not answer") from error
    except RuntimeError as error:
        # uvloop's word for a connection that was reset a moment ago, where asyncio's loop says nothing.
        if "handler is closed" not in str(error):
            raise
        raise UnavailableError("Redis does not answer") from error
