"""Deadlines and waits that do for a small machine, however busy it is with much else."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Final

from keek import Timeouts

DEADLINES: Final = {
    "feed_deadline_s": 60.0,
    "source_deadline_s": 20.0,
    "redis_deadline_s": 10.0,
    "sql_read_deadline_s": 10.0,
    "wait_for_feed_s": 30.0,
}
"""Settings: because the machine paused for a moment, no source is left out of a feed, and no interaction that
it was waited for."""

UNHURRIED: Final = {"gate_latency": 100.0, "gate_latency_ms": 10_000.0}
"""Settings: no release is refused for how long its towers take. Beside a busy neighbour, one of two that are
asked in turn may take five times as long as the other, and tests publish often."""

UNHURRIED_VARIABLES: Final = {f"KEEK_{name.upper()}": str(bound) for name, bound in UNHURRIED.items()}
"""The same for processes."""

TIMEOUTS: Final = Timeouts(
    list_feed_s=60.0,
    explain_feed_s=60.0,
    record_interaction_s=60.0,
    get_video_s=30.0,
    list_videos_s=30.0,
    update_video_s=30.0,
    delete_video_s=30.0,
    get_upload_s=30.0,
    search_videos_s=30.0,
    list_similar_videos_s=30.0,
    find_audience_s=30.0,
    list_trending_s=30.0,
    list_releases_s=30.0,
    get_release_s=30.0,
    list_experiments_s=30.0,
    get_experiment_s=30.0,
    check_health_s=30.0,
)
"""The caller's deadline holds where it is the shorter one, and is little more than a second by default."""


async def eventually(condition: Callable[[], bool | Awaitable[bool]], *, within_s: float = 60.0) -> None:
    """Asks until it is so; a TimeoutError when it does not come."""
    async with asyncio.timeout(within_s):
        while True:
            holds = condition()
            if await holds if inspect.isawaitable(holds) else holds:
                return
            await asyncio.sleep(0.02)
