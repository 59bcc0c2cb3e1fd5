"""What feeds of each release were like lately, for the fleet and for those who judge a release."""

import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from keek_server import metrics
from keek_server.feed.types import FeedPage, FeedSource
from keek_server.releases.fleet import Figures

_PARTS: Final = 12
"""The window moves by one of so many parts."""


@dataclass(slots=True)
class _Part:
    number: int
    feeds: int = 0
    errors: int = 0
    empty: int = 0
    compared: int = 0
    overlap: float = 0.0


@dataclass(slots=True)
class _Window:
    parts: deque[_Part] = field(default_factory=deque)

    def part(self, number: int) -> _Part:
        if not self.parts or self.parts[-1].number != number:
            self.parts.append(_Part(number))
        self.forget(number)
        return self.parts[-1]

    def forget(self, number: int) -> None:
        while self.parts and self.parts[0].number <= number - _PARTS:
            self.parts.popleft()


class ReleaseFigures:
    """Counts over a sliding window, by release."""

    name = "figures"

    def __init__(self, *, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._part_s = window_s / _PARTS
        self._clock = clock
        self._windows: defaultdict[str, _Window] = defaultdict(_Window)

    def apply(self, page: FeedPage) -> None:
        """Counts a page that was shown; a side effect of the feed."""
        release_id = page.context.serving.release.id
        part = self._windows[release_id].part(self._number())
        failed, empty = personalised_failed(page), _is_empty(page)
        part.feeds += 1
        part.errors += failed
        part.empty += empty
        outcome = "error" if failed else "empty" if empty else "ok"
        metrics.labelled(metrics.release_feeds, release_id, outcome).inc()

    def compared(self, release_id: str, overlap: float) -> None:
        """Counts a feed of a shadowed release; `overlap` as in `Figures`."""
        part = self._windows[release_id].part(self._number())
        part.compared += 1
        part.overlap += overlap

    def of(self, release_id: str) -> Figures:
        """Those of one release."""
        return self.all().get(release_id, Figures())

    def all(self) -> dict[str, Figures]:
        """Those of every release that had a feed in the window."""
        number = self._number()
        for window in self._windows.values():
            window.forget(number)
        return {name: _sum(window) for name, window in self._windows.items() if window.parts}

    def _number(self) -> int:
        return int(self._clock() / self._part_s)


def personalised_ids(page: FeedPage) -> list[str]:
    """The videos of a page that were chosen for its user."""
    return [item.video_id for item in page.selection.items if item.source is FeedSource.PERSONALISED]


def personalised_failed(page: FeedPage) -> bool:
    """Whether the source failed that asks the release; a history that came from elsewhere is no failure."""
    return any(trace.source is FeedSource.PERSONALISED and trace.error for trace in page.sources)


def _is_empty(page: FeedPage) -> bool:
    """Whether a user with a history got nothing personal, although the source ran and had slots."""
    if personalised_failed(page) or not page.context.user.history:
        return False
    wanted = any(
        share.source is FeedSource.PERSONALISED and share.quota_count for share in page.selection.shares
    )
    return wanted and not personalised_ids(page)


def _sum(window: _Window) -> Figures:
    parts = window.parts
    compared = sum(part.compared for part in parts)
    return Figures(
        feed_count=sum(part.feeds for part in parts),
        error_count=sum(part.errors for part in parts),
        empty_count=sum(part.empty for part in parts),
        compared_count=compared,
        mean_overlap=sum(part.overlap for part in parts) / compared if compared else 0.0,
    )
