"""A constant load of feeds, each looked at: is it of one release, and are its scores what they must be?"""

import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np

import keek
import keek.aio
from benchmarks.feed_scores import ExpectedScores
from benchmarks.steady_load import SteadyLoad
from keek.v1.feed_service_pb2 import ListFeedResponse, StreamFeedResponse

PAGE_SIZE: Final = 10
_STREAM_PAGES: Final = 3
_STREAM_EVERY: Final = 4
"""One call in so many is a stream."""
_CALL_S: Final = 5.0
_FAULTS_KEPT: Final = 10

Page: TypeAlias = ListFeedResponse | StreamFeedResponse


@dataclass(frozen=True, slots=True)
class Sample:
    """One page that came."""

    started: float
    """time.perf_counter() when it was asked for, or when the page before it had come."""
    ended: float
    release_id: str


@dataclass(slots=True)
class Tally:
    """What was seen."""

    samples: list[Sample] = field(default_factory=list)
    errors: int = 0
    mixed: int = 0
    """Pages with items of another release than their own, or with scores that no release gives."""
    degraded: int = 0
    """Pages that say that a source could not do its part."""
    unpersonalised: int = 0
    """Pages without one personalised item; all users have a history."""
    scores: int = 0
    largest_difference: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    """What went wrong, in words; the first few kinds of it."""

    def fault(self, text: str) -> None:
        """Remembers what went wrong."""
        if text in self.faults or len(self.faults) < _FAULTS_KEPT:
            self.faults[text] += 1

    def between(self, start: float, end: float) -> list[float]:
        """Milliseconds of the pages that were asked for in this time."""
        return [(each.ended - each.started) * 1e3 for each in self.samples if start <= each.started < end]


class FeedLoad(SteadyLoad):
    """ListFeed and StreamFeed, in turn to all servers."""

    def __init__(self, addresses: Sequence[str], expected: ExpectedScores, *, calls_per_s: float) -> None:
        """
        Args:
            addresses: Of the servers, which are called in turn.
            expected: The users that ask, and their scores.
            calls_per_s: Three of four are a ListFeed, one a StreamFeed of three pages.
        """
        super().__init__(addresses, per_s=calls_per_s)
        self._expected = expected
        self.tally = Tally()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Tally]:
        """Calls until the block ends, and then waits for what is under way."""
        async with self.calling():
            yield self.tally

    def turn(self, clients: Sequence[keek.aio.Client], number: int) -> None:
        """See `SteadyLoad`."""
        # Servers, users and kinds of calls meet in all combinations.
        turn, kind = divmod(number, _STREAM_EVERY)
        client = clients[(number + turn) % len(clients)]
        user_ids = self._expected.user_ids
        user_id = user_ids[number * 7 % len(user_ids)]
        self.start(self._stream(client, user_id) if kind == 0 else self._list(client, user_id))

    async def _list(self, client: keek.aio.Client, user_id: str) -> None:
        started = time.perf_counter()
        try:
            page = await client.list_feed(user_id, page_size=PAGE_SIZE, timeout_s=_CALL_S)
        except keek.KeekError as error:
            self._failed("ListFeed", error)
        else:
            self._came(user_id, page, started)

    async def _stream(self, client: keek.aio.Client, user_id: str) -> None:
        started = time.perf_counter()
        pages = client.stream_feed(user_id, page_size=PAGE_SIZE, page_count=_STREAM_PAGES, timeout_s=_CALL_S)
        try:
            async for page in pages:
                self._came(user_id, page, started)
                started = time.perf_counter()
        except keek.KeekError as error:
            self._failed("StreamFeed", error)

    def _failed(self, call: str, error: keek.KeekError) -> None:
        self.tally.errors += 1
        self.tally.fault(f"{call}: {error!r}")

    def _came(self, user_id: str, page: Page, started: float) -> None:
        tally = self.tally
        tally.samples.append(Sample(started, time.perf_counter(), page.release_id))
        if page.degradations:
            tally.degraded += 1
            tally.fault(f"degraded: {page.degradations[0].reason}")
        verdict = self._expected.judge(user_id, page.items)
        tally.scores += verdict.personalised
        tally.unpersonalised += not verdict.personalised
        if np.isfinite(verdict.largest_difference):
            tally.largest_difference = max(tally.largest_difference, verdict.largest_difference)
        releases = {item.release_id for item in page.items} - {page.release_id}
        if verdict.wrong or releases:
            tally.mixed += 1
            tally.fault(
                f"mixed: {verdict.wrong} of {verdict.personalised} scores wrong, items also of {releases}"
            )
