"""What an experiment's feeds showed and its users did, read from SQL into arrays."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from keek_server.clock import now_us
from keek_server.experiments.durations import read_durations
from keek_server.experiments.guardrails import FeedHealth
from keek_server.experiments.logs import Exposures, Interactions, Pool, Pooled
from keek_server.experiments.registry import Experiment
from keek_server.feed.types import FeedSource, PoolEntry
from keek_server.storage.database import Database
from keek_server.storage.tables import exposures, interactions

BEFORE_US: Final = 14 * 24 * 3600 * 1_000_000
"""How long before its start users are looked at, for what they do anyway."""

_PAGE: Final = 5_000
_OWN_SOURCES: Final = (FeedSource.PERSONALISED, FeedSource.TRENDING)
"""Those that slots are kept for."""


@dataclass(frozen=True, slots=True)
class Logged:
    """All that is known of an experiment, or of all feeds of some time."""

    exposures: Exposures
    health: FeedHealth
    interactions: Interactions
    user_ids: list[str]
    """By code."""
    video_ids: list[str]
    pools: list[Pool | None] = field(default_factory=list)
    """By feed: what its videos were drawn among; None where none was. Of all feeds of some time alone."""


@dataclass(slots=True)
class _Codes:
    """Numbers for ids, as they come."""

    known: defaultdict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.known = defaultdict(lambda: len(self.known))

    def __getitem__(self, id_: str) -> int:
        return self.known[id_]

    def __contains__(self, id_: str) -> bool:
        return id_ in self.known


@dataclass(slots=True)
class _Columns:
    """Exposures as they are read."""

    users: list[int] = field(default_factory=list)
    arms: list[int] = field(default_factory=list)
    times_us: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    degraded: list[bool] = field(default_factory=list)
    videos: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    propensities: list[float] = field(default_factory=list)
    video_propensities: list[float] = field(default_factory=list)

    def add(self, row: Any, user: int, arm: int, videos: _Codes) -> None:
        self.users.append(user)
        self.arms.append(arm)
        self.times_us.append(row.serve_time_us)
        self.lengths.append(len(row.slate))
        self.firsts.append(row.first_slot)
        self.asked.append(row.slot_count)
        self.latencies_ms.append(row.elapsed_us / 1e3)
        self.degraded.append(row.degraded)
        for video_id, source, score, *propensities in row.slate:
            self.videos.append(videos[video_id])
            self.sources.append(source)
            self.scores.append(score)
            self.propensities.append(_propensity(source, propensities[:1]))
            self.video_propensities.append(propensities[1] if len(propensities) > 1 else 1.0)

    def exposures(self) -> Exposures:
        return Exposures(
            users=np.array(self.users, np.int64),
            arms=np.array(self.arms, np.int16),
            times_us=np.array(self.times_us, np.int64),
            offsets=np.concatenate([[0], np.cumsum(self.lengths, dtype=np.int64)]).astype(np.int64),
            firsts=np.array(self.firsts, np.int64),
            videos=np.array(self.videos, np.int64),
            sources=np.array(self.sources, np.int8),
            scores=np.array(self.scores, np.float32),
            source_propensities=np.array(self.propensities, np.float32),
            video_propensities=np.array(self.video_propensities, np.float32),
        )

    def health(self) -> FeedHealth:
        return FeedHealth(
            users=np.array(self.users, np.int64),
            arms=np.array(self.arms, np.int16),
            latencies_ms=np.array(self.latencies_ms, np.float32),
            asked=np.array(self.asked, np.int64),
            served=np.array(self.lengths, np.int64),
            is_degraded=np.array(self.degraded, np.bool_),
        )


async def read_experiment(database: Database, experiment: Experiment, *, window_us: int) -> Logged:
    """The feeds of an experiment's users, those before it began as well, and what they did.

    Args:
        database: Holds the logs.
        experiment: One that has begun.
        window_us: How long after the end an interaction may come that a feed caused.

    Raises:
        UnavailableError: When the database is down or late.
    """
    assert experiment.start_time_us is not None
    start_us, end_us = experiment.start_time_us, experiment.stop_time_us or now_us()
    number_of = {arm.name: number for number, arm in enumerate(experiment.definition.arms)}
    users, videos, columns = _Codes(), _Codes(), _Columns()

    def arm_of(row: Any) -> int:
        if row.user_id in experiment.definition.overrides:
            return -1  # Who tries an arm was not drawn.
        return next((number_of.get(arm, -1) for id_, arm in row.arms or () if id_ == experiment.id), -1)

    # Who takes part is known at the end: those feeds first, the others of the same users after.
    c = exposures.c
    async for row in _exposed(database, start_us, end_us, c.arms.is_not(None)):
        if (arm := arm_of(row)) >= 0:
            columns.add(row, users[row.user_id], arm, videos)
    async for row in _exposed(database, start_us - BEFORE_US, start_us - 1):
        if row.user_id in users:
            columns.add(row, users[row.user_id], -1, videos)
    done = await _done(database, start_us - BEFORE_US, end_us + window_us, users, videos)
    return Logged(columns.exposures(), columns.health(), done, list(users.known), list(videos.known))


async def read_feeds(
    database: Database, start_us: int, end_us: int, *, window_us: int, experiment_id: str = "", arm: str = ""
) -> Logged:
    """All feeds of some time, or those of one arm, and what their users did; every feed counts as of arm 0.

    Args:
        database: Holds the logs.
        start_us: From when.
        end_us: Until when, inclusive.
        window_us: How long after that an interaction may come that a feed caused.
        experiment_id: Feeds of this experiment alone, where it is not empty.
        arm: Of this arm, then.

    Raises:
        UnavailableError: When the database is down or late.
    """
    users, videos, columns = _Codes(), _Codes(), _Columns()
    pools: list[Pool | None] = []
    async for row in _exposed(database, start_us, end_us):
        if not experiment_id or [experiment_id, arm] in (row.arms or ()):
            columns.add(row, users[row.user_id], 0, videos)
            shown = [videos[each[0]] for each in row.slate]
            pools.append(pool_of(row.pool, shown, videos.__getitem__) if row.pool else None)
    done = await _done(database, start_us, end_us + window_us, users, videos)
    return Logged(columns.exposures(), columns.health(), done, list(users.known), list(videos.known), pools)


def pool_of(entries: Sequence[PoolEntry], shown: Sequence[int], code_of: Callable[[str], int]) -> Pool:
    """What the videos of a feed were drawn among.

    Args:
        entries: As they are logged.
        shown: The codes of all items.
        code_of: Gives a video's code.
    """
    pool = []
    for entry in entries:
        if isinstance(entry, int):
            pool.append(Pooled(shown[entry], entry, is_shown=True))
        elif isinstance(entry, str):
            pool.append(Pooled(code_of(entry), len(shown) - 1, is_shown=False))
        else:
            pool.append(Pooled(code_of(entry[0]), entry[1] - 1, is_shown=False))
    return pool


async def _exposed(
    database: Database, start_us: int, end_us: int, *conditions: sa.ColumnElement[bool]
) -> AsyncIterator[Any]:
    c = exposures.c
    query = sa.select(exposures).where(c.serve_time_us.between(start_us, end_us), *conditions)
    async for page in _pages(database, query, c.seq):
        for row in page:
            yield row


async def _done(
    database: Database, start_us: int, end_us: int, users: _Codes, videos: _Codes
) -> Interactions:
    """What users who have a code did."""
    c = interactions.c
    query = sa.select(c.seq, c.user_id, c.video_id, c.kind, c.event_time_us, c.watched_ms).where(
        c.event_time_us.between(start_us, end_us)
    )
    rows: list[tuple[int, int, int, int, int]] = []
    async for page in _pages(database, query, c.seq):
        rows += [
            (
                *(users[row.user_id], videos[row.video_id], row.kind, row.event_time_us),
                -1 if row.watched_ms is None else row.watched_ms,
            )
            for row in page
            if row.user_id in users
        ]
    own_users, own_videos, kinds, times_us, watched_ms = np.array(rows, np.int64).reshape(-1, 5).T
    is_timed = watched_ms >= 0
    ids, timed = list(videos.known), np.unique(own_videos[is_timed]).tolist()
    by_id = await read_durations(database, [ids[code] for code in timed])
    durations_s = np.full(len(ids), np.nan)
    durations_s[timed] = [by_id.get(ids[code], np.nan) for code in timed]
    watched_s = np.where(is_timed, watched_ms / 1000, np.nan)
    return Interactions(
        own_users, own_videos, kinds.astype(np.int8), times_us, watched_s, durations_s[own_videos]
    )


async def _pages(
    database: Database, query: "sa.Select[Any]", seq: "sa.Column[int]"
) -> AsyncIterator[Sequence[Any]]:
    """The rows of a query in the order of their numbers, some at a time."""
    last = 0
    while True:
        page = await database.rows(query.where(seq > last).order_by(seq).limit(_PAGE))
        if page:
            yield page
            last = page[-1].seq
        if len(page) < _PAGE:
            return


def _propensity(source: int, logged: Sequence[float | None]) -> float:
    """Where nothing was left to chance, a slot's own source was certain; of another that filled it nothing
    is known."""
    if logged:
        return float("nan") if logged[0] is None else logged[0]
    return 1.0 if source in _OWN_SOURCES else float("nan")
