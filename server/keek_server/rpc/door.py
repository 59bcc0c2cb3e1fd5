"""Who may come in: what can be answered soon, what matters most first, and nothing that is too late."""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Final

from keek.v1 import feed_service_pb2, interaction_service_pb2, search_service_pb2, trending_service_pb2
from keek_server import metrics
from keek_server.errors import OverloadedError, TooLateError
from keek_server.rpc.limits import GradientLimit
from keek_server.rpc.status import Status, to_status
from keek_server.settings import Settings


class Priority(Enum):
    """What is refused first; the value is its name in metrics."""

    INTERACTION = "interaction"
    """Has a bound of its own, the most that the limit may be: what people did cannot be asked for again.
    Interactions share commits, so more of them at once take longer and are no overload. Where they take a
    server's time, feeds become slow, and the limit lets fewer of those in."""
    FEED = "feed"
    """Let in up to the limit."""
    SEARCH = "search"
    """Let in up to half of it."""


_FEEDS = feed_service_pb2.DESCRIPTOR.services_by_name["FeedService"].full_name
_INTERACTIONS = interaction_service_pb2.DESCRIPTOR.services_by_name["InteractionService"].full_name
_SEARCHES = search_service_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name
_TRENDING = trending_service_pb2.DESCRIPTOR.services_by_name["TrendingService"].full_name

PRIORITIES: Final[Mapping[str, Priority]] = {
    f"/{_INTERACTIONS}/RecordInteraction": Priority.INTERACTION,
    f"/{_FEEDS}/ListFeed": Priority.FEED,
    f"/{_FEEDS}/StreamFeed": Priority.FEED,
    f"/{_FEEDS}/ExplainFeed": Priority.FEED,
    f"/{_TRENDING}/ListTrending": Priority.FEED,
    f"/{_SEARCHES}/SearchVideos": Priority.SEARCH,
    f"/{_SEARCHES}/ListSimilarVideos": Priority.SEARCH,
    f"/{_SEARCHES}/FindAudience": Priority.SEARCH,
}
"""By method. Those that are not here are never refused at the door: health, reflection and administration,
and what has bounds of its own: uploads, imports, watchers."""

_INITIAL: Final = 12.0
_SEARCH_SHARE: Final = 0.5
_full = {each: metrics.refused.labels(each.value, "limit") for each in Priority}
_late = {each: metrics.refused.labels(each.value, "deadline") for each in Priority}
_LEAST_RETRY_S: Final = 0.1
_MOST_RETRY_S: Final = 5.0
_WINDOW_S: Final = 0.5
"""Refusals are counted, and what callers are told is reckoned anew, so often."""


class Door:
    """Counts the calls that are under way, over all priorities, and refuses what is too much."""

    def __init__(self, limit: GradientLimit, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """
        Args:
            limit: Says how many calls may be under way.
            clock: Gives seconds.
        """
        self._limit = limit
        self._clock = clock
        self._in_flight = 0
        self._recording = 0
        self._refused = 0
        """In this window."""
        self._refused_before = 0
        self._window_began = clock()
        self._refusals: dict[str, Status] = {}

    @property
    def in_flight(self) -> int:
        """Feeds and searches that are under way."""
        return self._in_flight

    @property
    def recording(self) -> int:
        """Interactions that are."""
        return self._recording

    def is_full(self, method: str) -> bool:
        """Whether a call would be refused now."""
        priority = PRIORITIES.get(method)
        return priority is not None and not self._has_room(priority)

    def refusal(self, method: str) -> Status:
        """Counts a refusal, and gives what the caller is told, made anew now and then alone."""
        priority = PRIORITIES[method]
        _full[priority].inc()
        self._refused += 1
        now = self._clock()
        if now - self._window_began >= _WINDOW_S:
            self._refused_before, self._refused = self._refused, 0
            self._window_began = now
            self._refusals.clear()
        if method not in self._refusals:
            self._refusals[method] = to_status(self._overloaded(method, priority, now))
        return self._refusals[method]

    @contextmanager
    def inside(self, method: str, remaining_s: float | None, *, begun: bool = False) -> Iterator[None]:
        """Has a call under way until the block ends; nothing at all for a method without a priority.

        Args:
            method: As `PRIORITIES` has it.
            remaining_s: Until the caller gives up; None when it never does.
            begun: It is a further part of a call that was let in before, and is counted, but not refused.

        Raises:
            OverloadedError: There are too many already.
            TooLateError: Such calls take longer than that at present.
        """
        priority = PRIORITIES.get(method)
        if priority is None:
            yield
            return
        if not begun and not self._has_room(priority):
            self.refusal(method)
            raise self._overloaded(method, priority, self._clock())
        if priority is Priority.INTERACTION:
            self._recording += 1
            try:
                yield
            finally:
                self._recording -= 1
            return
        if not begun:
            self._check_time(method, priority, remaining_s)
        self._in_flight += 1
        metrics.in_flight.set(self._in_flight)
        began = self._clock()
        try:
            yield
        except asyncio.CancelledError:
            # Its deadline has passed, most likely. A caller that left early says nothing.
            typical_s = self._limit.typical_s(method, self._clock())
            if typical_s is None or self._clock() - began > typical_s:
                self._sample(method, began)
            raise
        else:
            self._sample(method, began)
        finally:
            self._in_flight -= 1
            metrics.in_flight.set(self._in_flight)

    def _sample(self, method: str, began: float) -> None:
        now = self._clock()
        self._limit.sample(method, now - began, self._in_flight, now)
        metrics.limit.set(self._limit.value)

    def _check_time(self, method: str, priority: Priority, remaining_s: float | None) -> None:
        typical_s = self._limit.typical_s(method, self._clock())
        if remaining_s is not None and typical_s is not None and remaining_s < typical_s:
            _late[priority].inc()
            raise TooLateError(
                f"{remaining_s * 1e3:.0f} ms are left, and such calls take {typical_s * 1e3:.0f} ms now; "
                "nothing was begun: give them more time"
            )

    def _overloaded(self, method: str, priority: Priority, now: float) -> OverloadedError:
        # Those who were refused of late take so long, should they all come back.
        waiting = max(self._refused, self._refused_before)
        soon_s = waiting * (self._limit.typical_s(method, now) or 0.0) / self._limit.value
        return OverloadedError(
            f"this server has as many calls as it can answer soon, and takes no {priority.value} calls now: "
            "try again after the delay in RetryInfo, or another server",
            retry_after_s=min(max(soon_s, _LEAST_RETRY_S), _MOST_RETRY_S),
        )

    def _has_room(self, priority: Priority) -> bool:
        match priority:
            case Priority.INTERACTION:
                return self._recording < self._limit.maximum
            case Priority.FEED:
                return self._in_flight < self._limit.value
            case Priority.SEARCH:
                return self._in_flight < self._limit.value * _SEARCH_SHARE


def open_door(settings: Settings) -> Door:
    """A server's door."""
    return Door(
        GradientLimit(
            minimum=settings.concurrency_limit_min,
            maximum=settings.concurrency_limit_max,
            initial=_INITIAL,
        )
    )
