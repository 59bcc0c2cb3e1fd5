"""Feeds at a steady rate, with some interactions beside them, and what became of each."""

import random
import re
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import keek
import keek.aio
from benchmarks.steady_load import SteadyLoad
from keek.v1.feed_service_pb2 import Degradation, ListFeedResponse

PAGE_SIZE: Final = 10
_USERS: Final = 300
_FEEDS_PER_INTERACTION: Final = 5
_INTERACTION_S: Final = 6.0
"""Longer than the server waits for SQL."""
_CONNECTIONS: Final = 4


@dataclass(frozen=True, slots=True)
class Feed:
    """One call."""

    sent_s: float
    """By time.perf_counter()."""
    latency_s: float
    error: str = ""
    """The kind of it; empty when there was none."""
    items: int = 0
    repeated: bool = False
    """A video stood on the page twice."""
    named: tuple[str, ...] = ()
    """What the response said was missing: source, dependency, and what replaced it."""

    @property
    def is_good(self) -> bool:
        """Whether it came, is not empty, and shows no video twice."""
        return not self.error and self.items > 0 and not self.repeated


@dataclass(slots=True)
class Tally:
    """What was seen."""

    feeds: list[Feed] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    """Event ids of interactions, as 32 hexadecimal digits."""
    refused: Counter[str] = field(default_factory=Counter)
    """Interactions that were not, by the kind of error."""

    def between(self, start_s: float, end_s: float) -> list[Feed]:
        """The feeds that were sent in this time."""
        return [feed for feed in self.feeds if start_s <= feed.sent_s < end_s]


class FaultLoad(SteadyLoad):
    """Feeds, and interactions beside them."""

    def __init__(
        self, address: str, video_ids: Sequence[str], said: Sequence[str], *, per_s: float, deadline_s: float
    ) -> None:
        """
        Args:
            address: Of the server.
            video_ids: What is interacted with.
            said: How reasons call the dependencies.
            per_s: Feeds a second; an interaction for every five of them.
            deadline_s: Of a feed.
        """
        super().__init__([address] * _CONNECTIONS, per_s=per_s)
        self._video_ids = video_ids
        self._said = said
        self._deadline_s = deadline_s
        self._chance = random.Random(5)
        self.tally = Tally()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Tally]:
        """Calls until the block ends, and then waits for what is under way."""
        async with self.calling():
            yield self.tally

    def turn(self, clients: Sequence[keek.aio.Client], number: int) -> None:
        """See `SteadyLoad`."""
        client = clients[number % len(clients)]
        self.start(self._feed(client, self._user()))
        if number % _FEEDS_PER_INTERACTION == 0:
            self.start(self._interaction(client, self._user()))

    def _user(self) -> str:
        return f"u{self._chance.randrange(_USERS)}"

    async def _feed(self, client: keek.aio.Client, user_id: str) -> None:
        sent_s = time.perf_counter()
        try:
            page = await client.list_feed(user_id, page_size=PAGE_SIZE, timeout_s=self._deadline_s)
        except keek.KeekError as error:
            feed = Feed(sent_s, time.perf_counter() - sent_s, type(error).__name__)
        else:
            feed = self._came(page, sent_s)
        self.tally.feeds.append(feed)

    def _came(self, page: ListFeedResponse, sent_s: float) -> Feed:
        ids = [item.video_id for item in page.items]
        named = tuple(self._name(degradation) for degradation in page.degradations)
        latency_s = time.perf_counter() - sent_s
        return Feed(sent_s, latency_s, items=len(ids), repeated=len(set(ids)) < len(ids), named=named)

    def _name(self, degradation: Degradation) -> str:
        reason = re.sub(r"\d+ ms", "N ms", degradation.reason)
        missing = [said for said in self._said if said in reason] or [reason]
        text = f"{_source(degradation.source)} without {' and '.join(missing)}"
        replaced_by = " and ".join(map(_source, degradation.replaced_by))
        return f"{text}, replaced by {replaced_by}" if replaced_by else text

    async def _interaction(self, client: keek.aio.Client, user_id: str) -> None:
        event_id = uuid.uuid4()
        video_id = self._chance.choice(self._video_ids)
        try:
            await client.like(user_id, video_id, event_id=str(event_id), timeout_s=_INTERACTION_S)
        except keek.KeekError as error:
            self.tally.refused[type(error).__name__] += 1
        else:
            self.tally.acknowledged.add(event_id.hex)


def _source(source: keek.FeedSource.ValueType) -> str:
    return keek.FeedSource.Name(source).removeprefix("FEED_SOURCE_").lower()
