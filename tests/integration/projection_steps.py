"""What the tests of the projection do with it, beside what `projecting` has."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.reference import Contents, contents_of
from projecting import LIKE, SKIP, VIEW, Parts, event

from keek_server.embedded.stack import EmbeddedStack
from keek_server.interactions.append import Interaction
from keek_server.interactions.kinds import TrendingScope
from keek_server.interactions.projector import Projector
from keek_server.settings import Settings

LEASE_S = 12.0
"""Longer than a busy machine pauses: who stands still for that long loses it, and another acts, or the same
begins another generation."""


def small_settings(stack: EmbeddedStack, tmp_path: Path) -> Settings:
    """Settings whose limits are soon reached, in the stack's Redis and a database of their own."""
    return Settings(
        data_dir=tmp_path,
        redis_url=stack.settings.redis_url,
        history_limit=5,
        seen_limit=8,
        redis_deadline_s=10.0,
        projection_lease_s=LEASE_S,
        trending_scopes=frozenset(TrendingScope),
    )


async def time_out_lease(parts: Parts) -> None:
    """What comes when whoever holds the lease has not been heard of for as long as it holds."""
    assert 0 < await parts.redis.pttl(parts.keys.lease) <= parts.settings.projection_lease_s * 1000
    await parts.redis.pexpire(parts.keys.lease, 1)


@asynccontextmanager
async def running(*projectors: Projector) -> AsyncIterator[None]:
    """A scope in which they run."""
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
        assert await projector.wait_for((await parts.log.extent()).last_seq, 60)


async def contents(parts: Parts) -> Contents:
    """All that the current generation holds."""
    current = await parts.writer().current()
    assert current is not None
    return await contents_of(parts.redis, parts.keys.generation(current.number))


def many_events(count: int, seed: int = 3) -> list[Interaction]:
    """Interactions of some users over twenty days, the same but for their ids and times."""
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
