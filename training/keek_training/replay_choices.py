"""What a release would have shown in the feeds of a log, each user's history as it was then."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import sqlalchemy as sa
from tqdm import tqdm

from keek_server.experiments.reading import Logged
from keek_server.experiments.release_replay import Choices
from keek_server.interactions.history import HistoryEntry
from keek_server.interactions.kinds import KINDS
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.storage.tables import interactions
from keek_training.replay_target import Moment, Target

_USERS: Final = 256
"""Whose interactions are read together."""
_TOGETHER: Final = 64
"""Pages that are asked about together, as many as wait together at a busy server."""

Asked = tuple[int, Moment]
"""A feed of the log, and its moment."""

Pages = Mapping[int, Sequence[Asked]]
"""By user, each one's in the order of time."""


async def release_choices(
    target: Target, logged: Logged, database: Database, settings: Settings, *, per_owner_cap: int
) -> list[Choices | None]:
    """The release's choices for each of n feeds, as `release_replay` takes them.

    None where no video was drawn by chance; where an earlier page of the session is not in the log, so that
    nobody knows what the feed could not show again; and where the release knows nothing of the user.

    Args:
        target: The release.
        logged: The feeds, from `read_feeds`.
        database: Its log says what users had done by then.
        settings: What a history, and what a user has seen, is made of.
        per_owner_cap: Videos of one owner on a page.
    """
    choices: list[Choices | None] = [None] * len(logged.exposures)
    codes = {video_id: code for code, video_id in enumerate(logged.video_ids)}
    pages = _pages(logged)
    async for part in as_they_were(pages, logged, database, settings, desc="asking the release"):
        moments = [moment for _, moment in part]
        found = await asyncio.to_thread(target.choose, moments, per_owner_cap)
        for (feed, _), own in zip(part, found, strict=True):
            if own is not None:
                choices[feed] = [codes.get(video_id, -1) for video_id in own]
    return choices


async def as_they_were(
    pages: Pages, logged: Logged, database: Database, settings: Settings, *, desc: str
) -> AsyncIterator[list[Asked]]:
    """The pages with the history and what was seen at each, a few at a time.

    Args:
        pages: Without a history yet.
        logged: What the users are of.
        database: Its log says what users had done by then.
        settings: What a history, and what a user has seen, is made of.
        desc: Names the progress that is shown.
    """
    with tqdm(total=len(pages), unit="user", desc=desc, disable=None) as progress:
        async for users, rows in done_before(pages, logged, database):
            asked = [
                own
                for user in users
                for own in _as_it_was(pages[user], rows.get(logged.user_ids[user], []), settings)
            ]
            for first in range(0, len(asked), _TOGETHER):
                yield asked[first : first + _TOGETHER]
            progress.update(len(users))


async def done_before(
    pages: Pages, logged: Logged, database: Database
) -> AsyncIterator[tuple[list[int], dict[str, list[Any]]]]:
    """Some users at a time, and what they had done by their last page: by id, in the order of the log."""
    users = list(pages)
    for start in range(0, len(users), _USERS):
        batch = users[start : start + _USERS]
        last_us = max(pages[user][-1][1].now_us for user in batch)
        yield batch, await _done_by(database, [logged.user_ids[user] for user in batch], last_us)


def _pages(logged: Logged) -> dict[int, list[Asked]]:
    """By user, and in the order of time: the feeds that can be asked about, without a history yet."""
    exposures, names = logged.exposures, logged.video_ids
    pages: defaultdict[int, list[Asked]] = defaultdict(list)
    sessions: defaultdict[int, dict[int, list[str]]] = defaultdict(dict)
    for feed in exposures.times_us.argsort(kind="stable").tolist():
        user, first = int(exposures.users[feed]), int(exposures.firsts[feed])
        start, end = exposures.offsets[feed], exposures.offsets[feed + 1]
        shown = [names[code] for code in exposures.videos[start:end].tolist()]
        # By how many videos a session has shown: the latest with as many as this page comes after.
        before = sessions[user].get(first) if first else []
        if before is None:
            continue
        sessions[user][first + len(shown)] = before + shown
        pool = logged.pools[feed]
        if pool is None:
            continue
        drawn = {pooled.last for pooled in pool if pooled.is_shown}
        beside = tuple(video_id for place, video_id in enumerate(shown) if place not in drawn)
        now_us = int(exposures.times_us[feed])
        excluded = frozenset((*before, *beside))
        pages[user].append((feed, Moment(logged.user_ids[user], now_us, (), excluded, beside, len(shown))))
    return pages


def _as_it_was(pages: Sequence[Asked], rows: Sequence[Any], settings: Settings) -> Iterator[Asked]:
    """A user's pages with the history and what was seen at each, from all rows of the user in their order."""
    history: list[HistoryEntry] = []
    seen: dict[str, None] = {}
    done = 0
    for feed, page in pages:
        while done < len(rows) and rows[done].record_time_us <= page.now_us:
            row = rows[done]
            history.append(HistoryEntry(row.video_id, KINDS[row.kind], row.event_time_us))
            # The latest stands last, and the first goes when there are too many.
            seen.pop(row.video_id, None)
            seen[row.video_id] = None
            if len(seen) > settings.seen_limit:
                del seen[next(iter(seen))]
            done += 1
        excluded = page.excluded.union(seen)
        latest = tuple(history[-settings.history_limit :])
        yield (
            feed,
            Moment(page.user_id, page.now_us, latest, excluded, page.beside, page.slot_count),
        )


async def _done_by(database: Database, user_ids: Sequence[str], last_us: int) -> dict[str, list[Any]]:
    """What users had done by some time, by user, in the order of the log."""
    c = interactions.c
    query = (
        sa.select(c.user_id, c.seq, c.video_id, c.kind, c.event_time_us, c.record_time_us)
        .where(c.user_id.in_(user_ids), c.record_time_us <= last_us)
        .order_by(c.user_id, c.seq)
    )
    # The whole log of some users may take longer than one request's transaction is allowed to.
    async with database.engine.connect() as connection:
        rows: list[Any] = list((await connection.execute(query)).all())
    return {user_id: list(own) for user_id, own in groupby(rows, itemgetter(0))}
