"""What the projection of a log must be, computed plainly and without Redis, and what it is."""

import math
from collections.abc import Iterable
from typing import Any

from redis.asyncio import Redis

from keek_server.interactions.kinds import EVERYTHING, TrendingScope
from keek_server.interactions.rows import LoggedInteraction
from keek_server.settings import Settings

Contents = dict[str, Any]
"""Keys without the prefix of their generation; lists, and dicts of member and score."""

TOLERANCE = 1e-6
"""How much scores may differ, which are log2 of a weight. An absolute one: with times since the epoch
in them they are so large that one part in a billion would hide an interaction counted twice."""

_COUNTED_PER_SEEN = 4


def expected(rows: Iterable[LoggedInteraction], settings: Settings) -> Contents:
    """The contents that a projection of these rows has, in the order of the log.

    Exact but for the last bits of trending scores, and only while no list of trending or rising
    videos outgrows its limit.
    """
    contents: Contents = {}
    addends: dict[str, dict[str, list[float]]] = {}
    window_us = int(settings.trending_window_s * 1e6)
    for row in rows:
        history = contents.setdefault(f"history:{row.user_id}", [])
        history.append(f"{int(row.kind)}:{row.event_time_us}:{row.video_id}")
        contents.setdefault(f"seen:{row.user_id}", {})[row.video_id] = float(row.seq)
        weight = settings.interaction_weights.get(row.kind, 0.0)
        window = row.event_time_us // window_us
        member = f"{window}:{int(row.kind)}:{row.video_id}"
        if weight > 0 and _count(contents, row.user_id, member, window, settings):
            for board, half_life_s in (
                ("trending", settings.trending_half_life_s),
                ("rising", settings.rising_half_life_s),
            ):
                x = row.event_time_us / 1e6 / half_life_s + math.log2(weight)
                for scope in scopes_of(row, settings):
                    addends.setdefault(f"{board}:{scope}", {}).setdefault(row.video_id, []).append(x)
    for name, videos in addends.items():
        contents[name] = {video: log2_sum(xs) for video, xs in videos.items()}
    return _trimmed(contents, settings)


def _count(contents: Contents, user_id: str, member: str, window: int, settings: Settings) -> bool:
    """Remembers a user's interaction as counted; False when it was remembered already."""
    counted = contents.setdefault(f"counted:{user_id}", {})
    if member in counted:
        return False
    counted[member] = float(window)
    if len(counted) > _COUNTED_PER_SEEN * settings.seen_limit:
        # The oldest window's go first, of these the first by their bytes.
        del counted[min(counted, key=lambda old: (counted[old], old.encode()))]
    return True


def scopes_of(row: LoggedInteraction, settings: Settings) -> list[str]:
    """The lists that a row counts in."""
    scopes = [EVERYTHING]
    if TrendingScope.REGION in settings.trending_scopes and row.region:
        scopes.append(f"region:{row.region}")
    if TrendingScope.TAG in settings.trending_scopes:
        scopes += [f"tag:{tag}" for tag in sorted(set(row.tags))]
    return scopes


def log2_sum(xs: list[float]) -> float:
    """log2 of the sum of 2 ** x, correctly rounded but for the last operations."""
    high = max(xs)
    return high + math.log2(math.fsum(2.0 ** (x - high) for x in xs))


def differences(actual: Contents, wanted: Contents, *, tolerance: float = TOLERANCE) -> list[str]:
    """What differs, for people; scores may by the tolerance. Empty when nothing does."""
    found = [f"{key}: is there, and should not be" for key in actual.keys() - wanted.keys()]
    found += [f"{key}: is missing" for key in wanted.keys() - actual.keys()]
    for key in actual.keys() & wanted.keys():
        a, b = actual[key], wanted[key]
        if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
            found += [
                f"{key} {member}: {a[member]!r}, not {b[member]!r}"
                for member in a
                if abs(a[member] - b[member]) > tolerance
            ]
        elif a != b:
            found.append(f"{key}: {a!r}, not {b!r}")
    return found


async def contents_of(redis: Redis, prefix: str) -> Contents:
    """Everything that Redis holds below a generation's prefix, but its state."""
    contents: Contents = {}
    async for key in redis.scan_iter(match=f"{prefix}*", count=1000):
        name = key.removeprefix(prefix)
        if name.startswith("history:"):
            contents[name] = await redis.lrange(key, 0, -1)
        elif name != "state":
            members: Any = await redis.zrange(key, 0, -1, withscores=True)
            contents[name] = dict(members)
    return contents


def _trimmed(contents: Contents, settings: Settings) -> Contents:
    for name, value in contents.items():
        if name.startswith("history:"):
            contents[name] = value[-settings.history_limit :]
        elif name.startswith("seen:"):
            newest = sorted(value.items(), key=lambda item: item[1])[-settings.seen_limit :]
            contents[name] = dict(newest)
    return contents
