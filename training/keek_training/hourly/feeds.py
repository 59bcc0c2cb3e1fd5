"""Cached feeds: the personalised videos of recently active users, computed in advance."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import sqlalchemy as sa
from tqdm import tqdm

from keek_server.feed.cached import CachedFeed, CachedFeeds
from keek_server.interactions.connection import open_redis
from keek_server.interactions.keys import ProjectionKeys
from keek_server.interactions.log import InteractionLog
from keek_server.releases.release import Release
from keek_server.retrieval.index import Vectors
from keek_server.retrieval.milvus_store import open_milvus
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.storage.tables import interactions
from keek_server.towers.client import TowerClient
from keek_training.publishing.milvus import PATIENT_S
from keek_training.publishing.users import embed_users

_USERS_A_BATCH = 256
_REDIS_DEADLINE_S = 10.0


async def write_cached_feeds(
    release_id: str, database: Database, towers: TowerClient, settings: Settings
) -> int:
    """Writes the feeds of the users who were active last.

    Args:
        release_id: The release that makes them.
        database: Its log says who was active, and what they have seen.
        towers: Have the release's user tower.
        settings: How many, how long and where.

    Returns:
        How many feeds were written.

    Raises:
        SetupError: When the release's folder is not there, or Redis cannot be reached.
        UnavailableError: When the database, Triton, Redis or Milvus fails on the way.
    """
    if not settings.cached_feed_users:
        return 0
    with open_milvus(settings, PATIENT_S) as milvus:
        release = await asyncio.to_thread(Release.open, settings.release_dir / release_id, milvus=milvus)
        return await _write(release, database, towers, settings)


async def _write(release: Release, database: Database, towers: TowerClient, settings: Settings) -> int:
    manifest = release.manifest
    user_ids, vectors = await embed_users(
        database,
        towers,
        manifest.user_tower.version,
        release.corpus,
        history_length=manifest.history_length,
        limit=settings.cached_feed_users,
    )
    keys = ProjectionKeys.of(settings.redis_prefix, (await InteractionLog(database).extent()).log_id)
    async with open_redis(settings) as redis:
        feeds = CachedFeeds(redis, keys, deadline_s=_REDIS_DEADLINE_S)
        with tqdm(total=len(user_ids), unit="feed", desc="writing cached feeds", disable=None) as progress:
            for start in range(0, len(user_ids), _USERS_A_BATCH):
                batch = user_ids[start : start + _USERS_A_BATCH]
                seen = await seen_videos(database, batch)
                made = await asyncio.to_thread(
                    make_feeds, release, batch, vectors[start : start + len(batch)], seen,
                    settings.cached_feed_size,
                )  # fmt: skip
                await feeds.write(made, settings.cached_feed_ttl_s)
                progress.update(len(batch))
    return len(user_ids)


def make_feeds(
    release: Release,
    user_ids: Sequence[str],
    vectors: Vectors,
    seen: Mapping[str, Collection[str]],
    size: int,
) -> dict[str, CachedFeed]:
    """The nearest videos of each user, without those that the user has seen.

    Args:
        release: Chooses them.
        user_ids: n users.
        vectors: float32 [n, DIMENSION].
        seen: By user.
        size: The most videos of each.
    """
    feeds: dict[str, CachedFeed] = {}
    for k, places in _by_need([size + len(seen.get(user_id, ())) for user_id in user_ids]):
        scores, rows = release.index.search(vectors[places], k)
        for place, own_scores, own_rows in zip(places, scores.tolist(), rows.tolist(), strict=True):
            user_id = user_ids[place]
            known = seen.get(user_id, ())
            pairs = [
                (video_id, score)
                for video_id, score in _found(release, own_rows, own_scores)
                if video_id not in known
            ][:size]
            ids, kept = zip(*pairs, strict=True) if pairs else ((), ())
            feeds[user_id] = CachedFeed(release.id, ids, kept)
    return feeds


async def seen_videos(database: Database, user_ids: Sequence[str]) -> dict[str, set[str]]:
    """What some users interacted with."""
    c = interactions.c
    query = sa.select(c.user_id, c.video_id).distinct().where(c.user_id.in_(user_ids))
    seen: dict[str, set[str]] = defaultdict(set)
    async with database.engine.connect() as connection:
        for user_id, video_id in await connection.execute(query):
            seen[user_id].add(video_id)
    return dict(seen)


def _found(release: Release, rows: list[int], scores: list[float]) -> Iterator[tuple[str, float]]:
    """Lazily: of those who have seen little, few ids are needed."""
    return (
        (release.corpus.ids.id_of(row), score)
        for row, score in zip(rows, scores, strict=True)
        if row >= 0 and np.isfinite(score)
    )


def _by_need(counts: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
    """Places that ask for about as many videos, together: the most of them, and the places.

    One user who has seen thousands must not make the search as deep for all.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for place, count in enumerate(counts):
        groups[count.bit_length()].append(place)
    for places in groups.values():
        yield max(counts[place] for place in places), places
