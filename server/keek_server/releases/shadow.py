"""A shadowed release: its feeds are computed and compared, and shown to nobody."""

import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from keek_server import metrics
from keek_server.feed.types import FeedPage
from keek_server.releases.diff import Feeds, shared
from keek_server.releases.figures import ReleaseFigures, personalised_failed, personalised_ids
from keek_server.releases.live import LiveRelease
from keek_server.releases.opening import ServingRelease
from keek_server.releases.plan import TrialKind


class Shadow:
    """A side effect of a feed: the same query once more, on the release that is tried."""

    name = "shadow"

    def __init__(self, live: LiveRelease, figures: ReleaseFigures, *, limit: int) -> None:
        """
        Args:
            live: Knows what is shadowed.
            figures: Counts what was compared.
            limit: Feeds at the same time; further ones are left out, so that a slow release only costs
                what it is given.
        """
        self._live = live
        self._figures = figures
        self._limit = limit
        self._running = 0
        self._feeds: Feeds | None = None

    def use(self, feeds: Feeds) -> None:
        """Says who makes the feeds: the pipeline, which has this among its side effects."""
        self._feeds = feeds

    def apply(self, page: FeedPage) -> Coroutine[Any, Any, None] | None:
        """Compares one page, if it is this request's turn."""
        trial = self._live.served.trial
        if trial is None or self._feeds is None or trial[0].kind is not TrialKind.SHADOW:
            return None
        if not _comparable(page) or random.uniform(0, 100) >= trial[0].percent:
            return None
        if self._running >= self._limit:
            metrics.shadow_left_out.inc()
            return None
        self._running += 1
        return self._compare(page, self._feeds, trial[1])

    async def _compare(self, page: FeedPage, feeds: Feeds, serving: ServingRelease) -> None:
        try:
            # Its searches stand with those that may take longer: shown feeds do not wait behind them.
            aside = replace(serving, searcher=serving.side_searcher)
            other = await feeds.run(page.context.query, aside)
        finally:
            self._running -= 1
        if personalised_failed(other):
            metrics.failures.labels(self.name).inc()
            return
        overlap = shared(personalised_ids(page), personalised_ids(other))
        self._figures.compared(serving.release.id, overlap)
        metrics.shadow_overlap.observe(overlap)


def _comparable(page: FeedPage) -> bool:
    """Whether what a release chose for the user is all there is to compare.

    Not for users without a history, where nothing personal agrees with nothing, nor on the pages behind
    the first: what they leave out was shown by the other release.
    """
    return bool(page.context.history) and not page.context.query.served and not personalised_failed(page)
