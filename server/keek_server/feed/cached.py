"""Feeds that were computed in advance, in Redis: what users get while Triton is gone.

`keek-train hourly` writes them after each release, for the users who were active last. One value a
user names the release that made it: under another release it counts as none, because its choice
and its scores would pass for that release's.
"""

import json
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis

from keek_server.breaker import Breaker
from keek_server.feed.types import Candidate, FeedContext, FeedSource
from keek_server.interactions.connection import redis_deadline
from keek_server.interactions.keys import ProjectionKeys

logger = logging.getLogger(__name__)

TTL_JITTER: Final = 0.1
"""Share of its time to live by which a feed goes later or earlier: not all at once."""


@dataclass(frozen=True, slots=True)
class CachedFeed:
    """The personalised videos of one user, best first."""

    release_id: str
    """The release that chose them."""
    video_ids: tuple[str, ...]
    scores: tuple[float, ...]
    """Dot products of user and video vector, to six digits."""

    def encode(self) -> str:
        """As it is kept: compact JSON."""
        scores = [float(f"{score:.6g}") for score in self.scores]
        return json.dumps(
            [self.release_id, self.video_ids, scores], ensure_ascii=False, separators=(",", ":")
        )

    @classmethod
    def decode(cls, text: str | bytes) -> "CachedFeed | None":
        """Reads what `encode` gave; None when it is none."""
        try:
            release_id, video_ids, scores = json.loads(text)
            if not isinstance(release_id, str) or len(video_ids) != len(scores):
                return None
            return cls(release_id, tuple(map(str, video_ids)), tuple(map(float, scores)))
        except (ValueError, TypeError):
            return None


class CachedFeeds:
    """The cached feeds of one log's users."""

    def __init__(
        self, redis: Redis, keys: ProjectionKeys, *, deadline_s: float, breaker: Breaker | None = None
    ) -> None:
        """
        Args:
            redis: Where they are.
            keys: Of the log.
            deadline_s: For one round trip.
            breaker: Of what feeds ask this Redis; one of its own by default.
        """
        self._redis = redis
        self._keys = keys
        self._deadline_s = deadline_s
        self._breaker = breaker or Breaker("Redis", "redis", deadline_s=deadline_s)

    async def read(self, user_id: str) -> CachedFeed | None:
        """A user's feed, whichever release made it; None when there is none.

        Raises:
            UnavailableError: When Redis is down or late.
        """
        self._breaker.check(lambda: self._get(user_id))
        text = await self._get(user_id)
        if text is None:
            return None
        feed = CachedFeed.decode(text)
        if feed is None:
            logger.warning("the cached feed of user %r cannot be read", user_id)
        return feed

    async def _get(self, user_id: str) -> Any:
        async with redis_deadline(self._deadline_s, self._breaker):
            return await self._redis.get(self._keys.cached_feed(user_id))

    async def write(self, feeds: Mapping[str, CachedFeed], ttl_s: float) -> None:
        """Replaces the feeds of some users, in one round trip.

        Args:
            feeds: By user.
            ttl_s: How long they are kept, TTL_JITTER more or less.

        Raises:
            UnavailableError: When Redis is down or late; some may be written then.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for user_id, feed in feeds.items():
            kept_s = ttl_s * random.uniform(1 - TTL_JITTER, 1 + TTL_JITTER)
            pipeline.set(self._keys.cached_feed(user_id), feed.encode(), px=max(1, round(kept_s * 1000)))
        async with redis_deadline(self._deadline_s):
            await pipeline.execute()


class CachedSource:
    """The feed that this release made for the user in advance: asked when personalised videos fail."""

    name = "cached"
    source = FeedSource.CACHED
    asks = "Redis"

    def __init__(self, feeds: CachedFeeds) -> None:
        self._feeds = feeds

    def enabled(self, _context: FeedContext) -> bool:
        """For everyone: whoever has no feed gets none."""
        return True

    def at_once(self, _context: FeedContext, _count: int) -> None:
        """See `Source`."""
        return

    async def candidates(self, context: FeedContext, _count: int) -> list[Candidate]:
        """See `Source`; scored as the release scored them. None when another release made the feed.

        Raises:
            UnavailableError: When Redis is down or late.
        """
        feed = await self._feeds.read(context.query.user_id)
        if feed is None or feed.release_id != context.serving.release.id:
            return []
        owners = context.owners_of(feed.video_ids)
        return [
            Candidate(video_id, self.source, score, owners.get(video_id, 0))
            for video_id, score in zip(feed.video_ids, feed.scores, strict=True)
        ]
