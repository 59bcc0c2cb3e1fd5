"""The head of the trending list, kept for feeds: one read answers all of a moment."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from keek_server.batching import Batcher
from keek_server.interactions.trending import Trending

_LEAST_READ: Final = 128
_MAX_WAITING: Final = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """The strongest videos of a list."""

    rows: Sequence[tuple[str, float]]
    """Videos and the logarithms of their scores, strongest first; some of them may be deleted."""
    is_whole: bool
    """Whether the list ends here."""


class TrendingHead:
    """Keeps the head as deep as it was asked for since the last read, and for as long as it may."""

    def __init__(self, trending: Trending, *, refresh_s: float) -> None:
        """
        Args:
            trending: Read.
            refresh_s: The oldest that an answer may be; with 0 each is read for whoever waits for it.
        """
        self._trending = trending
        self._refresh_s = refresh_s
        self._head = Head((), is_whole=False)
        self._until = -math.inf
        self._expiries = 0
        self._deepest = 0
        # What is asked while a read is under way goes into the next, and is answered by the first of them.
        self._batcher: Batcher[int, Head] = Batcher(
            self._read, max_weight=_MAX_WAITING, max_waiting=_MAX_WAITING
        )

    def expire(self) -> None:
        """What is asked from now on is answered from the list as it is from now on."""
        self._until = -math.inf
        self._expiries += 1

    def kept(self, count: int) -> Head | None:
        """The same as `top`, where nothing has to be read for it."""
        self._deepest = max(self._deepest, count)
        return self._head if self._holds(count) else None

    async def top(self, count: int) -> Head:
        """At least the `count` strongest videos, as far as there are so many.

        Raises:
            UnavailableError: When Redis is down, or the projection is not complete yet.
            OverloadedError: When too many wait already.
        """
        return self.kept(count) or await self._batcher.submit(count)

    def _holds(self, count: int) -> bool:
        if time.monotonic() >= self._until:
            return False
        return len(self._head.rows) >= count or self._head.is_whole

    async def _read(self, counts: list[int]) -> list[Head]:
        if not self._holds(max(counts)):
            until, expiries = time.monotonic() + self._refresh_s, self._expiries
            depth = max(_LEAST_READ, 1 << (max(self._deepest, *counts) - 1).bit_length())
            self._deepest = 0
            rows = await self._trending.rows(depth)
            self._head = Head(rows, is_whole=len(rows) < depth)
            self._until = until if self._expiries == expiries else -math.inf
        return [self._head] * len(counts)
