"""Pages of the exposure log as the ranker reads them, with what their users did."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np

from keek_server.experiments.logs import FloatArray, Int64Array
from keek_server.experiments.reading import Logged
from keek_server.feed.types import FeedSource
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.towers.features import Float32Array, Tensors
from keek_server.towers.ranking import RankedPage, ranker_batch
from keek_training.replay_choices import Asked, as_they_were, done_before
from keek_training.replay_target import Moment, Target

MOST_PAGES: Final = 50_000
"""That a ranker learns from, the latest: 3 KiB each."""


@dataclass(frozen=True, slots=True)
class Shown:
    """The personalised videos of one page."""

    page: RankedPage
    rewards: FloatArray
    """float [n]: what came of each."""
    positions: Int64Array
    """int64 [n]: its slot on the page, from 0."""
    time_us: int
    """When it was served."""


@dataclass(frozen=True, slots=True)
class Pages:
    """n pages in the order of time, padded to the one with the most personalised videos."""

    inputs: Tensors
    """The ranker's tensors, [n, ...] each."""
    rewards: FloatArray
    """float64 [n, width]; 0 where nothing is."""
    positions: Int64Array
    """int64 [n, width]."""
    times_us: Int64Array
    """int64 [n]."""

    def __len__(self) -> int:
        return len(self.times_us)

    @property
    def mask(self) -> Float32Array:
        """float32 [n, width]: 1 where a video is."""
        return np.asarray(self.inputs["mask"], np.float32)

    @classmethod
    def of(cls, shown: Sequence[Shown]) -> Self:
        """At least one page."""
        ordered = sorted(shown, key=lambda page: page.time_us)
        inputs = ranker_batch([each.page for each in ordered])
        shape = inputs["mask"].shape
        rewards, positions = np.zeros(shape), np.zeros(shape, np.int64)
        for row, each in enumerate(ordered):
            rewards[row, : len(each.rewards)] = each.rewards
            positions[row, : len(each.positions)] = each.positions
        return cls(inputs, rewards, positions, np.array([each.time_us for each in ordered], np.int64))

    def part(self, start: int, end: int) -> "Pages":
        """Some of the pages, in a row."""
        return Pages(
            {name: values[start:end] for name, values in self.inputs.items()},
            self.rewards[start:end],
            self.positions[start:end],
            self.times_us[start:end],
        )


async def read_pages(
    target: Target, logged: Logged, rewards: FloatArray, database: Database, settings: Settings
) -> list[Shown]:
    """The latest MOST_PAGES pages that something came of, with vectors and features of a release.

    A page is left out where the release knows nothing of its user, where less than two of its personalised
    videos are left, and where nothing came of those.

    Args:
        target: The release.
        logged: The feeds, from `read_feeds`.
        rewards: float64 [m], as of `totals.slot_rewards`.
        database: Its log says what users had done by then.
        settings: What a history is made of.
    """
    slots = _slots(logged, rewards)
    by_user = _by_user(logged, list(slots))
    found: list[Shown] = []
    async for part in as_they_were(by_user, logged, database, settings, desc="reading pages"):
        found += await asyncio.to_thread(_read, target, logged, rewards, slots, part)
    return found


async def videos_of(logged: Logged, rewards: FloatArray, database: Database) -> set[str]:
    """The videos that `read_pages` looks at with these arguments: shown, or met by their users before."""
    slots = _slots(logged, rewards)
    by_user = _by_user(logged, list(slots))
    codes = logged.exposures.videos
    found = {logged.video_ids[code] for own in slots.values() for code in codes[own].tolist()}
    async for _, rows in done_before(by_user, logged, database):
        found.update(row.video_id for own in rows.values() for row in own)
    return found


def _slots(logged: Logged, rewards: FloatArray) -> dict[int, Int64Array]:
    """By feed, in the order of time: its personalised slots, where something came of one of several."""
    exposures = logged.exposures
    personalised = exposures.sources == FeedSource.PERSONALISED
    feeds, count = exposures.feeds, len(exposures)
    shown = np.bincount(feeds[personalised], minlength=count)
    earned = np.bincount(feeds[personalised], rewards[personalised], minlength=count)
    usable = np.flatnonzero((shown > 1) & (earned > 0))
    latest = usable[np.argsort(exposures.times_us[usable], kind="stable")][-MOST_PAGES:]
    slots = {}
    for feed in latest.tolist():
        start, end = exposures.offsets[feed], exposures.offsets[feed + 1]
        slots[feed] = start + np.flatnonzero(personalised[start:end])
    return slots


def _by_user(logged: Logged, feeds: Sequence[int]) -> dict[int, list[Asked]]:
    """The moments of some feeds by user, each user's in the order of time, without a history yet."""
    pages: defaultdict[int, list[Asked]] = defaultdict(list)
    for feed in feeds:
        user, now_us = int(logged.exposures.users[feed]), int(logged.exposures.times_us[feed])
        pages[user].append((feed, Moment(logged.user_ids[user], now_us, (), frozenset(), (), 0)))
    return pages


def _read(
    target: Target,
    logged: Logged,
    rewards: FloatArray,
    slots: dict[int, Int64Array],
    asked: Sequence[Asked],
) -> list[Shown]:
    exposures, names = logged.exposures, logged.video_ids
    videos = [[names[code] for code in exposures.videos[slots[feed]].tolist()] for feed, _ in asked]
    shown = []
    pages = target.ranked_pages([moment for _, moment in asked], videos)
    for (feed, moment), read in zip(asked, pages, strict=True):
        if read is None:
            continue
        known, page = read
        own = slots[feed][known]
        if len(own) > 1 and rewards[own].any():
            shown.append(Shown(page, rewards[own], own - exposures.offsets[feed], moment.now_us))
    return shown
