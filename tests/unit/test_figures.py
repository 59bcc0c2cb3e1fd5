"""What is counted of a release's feeds, and what of a shadow's."""

import asyncio
from typing import Any, cast

import pytest
from manifests import bare_manifest

from keek_server.feed.types import (
    Candidate,
    Degradation,
    FeedContext,
    FeedPage,
    FeedQuery,
    FeedSource,
    Selection,
    SlotShare,
    SourceTrace,
)
from keek_server.interactions.history import History, HistoryEntry
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.projection import UserState
from keek_server.releases.figures import ReleaseFigures
from keek_server.releases.fleet import Figures
from keek_server.releases.live import LiveRelease, Served
from keek_server.releases.opening import ServingRelease
from keek_server.releases.plan import Trial, TrialKind
from keek_server.releases.release import Release
from keek_server.releases.shadow import Shadow

PERSONALISED = FeedSource.PERSONALISED
NONE = cast("Any", None)


def serving(release_id: str) -> ServingRelease:
    """A release that nothing is asked of."""
    release = Release(bare_manifest(release_id), NONE, NONE, None, None)
    return ServingRelease(
        release,
        users=NONE,
        found=NONE,
        fresh=NONE,
        searcher=cast("Any", "for feeds"),
        side_searcher=cast("Any", "aside"),
        audience=NONE,
        audience_searcher=NONE,
        clip=None,
    )


def page(
    *video_ids: str,
    release: ServingRelease | None = None,
    history: int = 1,
    error: str = "",
    slots: int = 3,
    served: tuple[int, ...] = (),
) -> FeedPage:
    entries = [HistoryEntry(f"h{number}", InteractionKind.LIKE, number) for number in range(history)]
    context = FeedContext(FeedQuery("u", 10, 1.0, served), release or serving("a"), 1)
    context.user = UserState(History.of(entries), frozenset())
    items = [Candidate(video_id, PERSONALISED, 1.0) for video_id in video_ids]
    shares = [SlotShare(PERSONALISED, slots, len(items))]
    return FeedPage(
        context, Selection(items, shares), [SourceTrace(PERSONALISED, len(items), 0.0, error)], [], items
    )


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("shown", "counted"),
    [
        (page("x"), Figures(1)),
        (page(), Figures(1, empty_count=1)),
        (page(error="Triton is gone"), Figures(1, error_count=1)),
        # Who has no history gets nothing personal from any release; nor does a page without such slots.
        (page(history=0), Figures(1)),
        (page(slots=0), Figures(1)),
    ],
)
def test_a_feed_is_good_or_empty_or_failed(shown: FeedPage, counted: Figures) -> None:
    figures = ReleaseFigures(window_s=60.0)
    figures.apply(shown)
    assert figures.of("a") == counted


def test_a_history_that_came_from_the_log_is_no_fault_of_the_release() -> None:
    shown = page("x")
    shown.context.degradations.append(Degradation(PERSONALISED, "history read from the log"))
    figures = ReleaseFigures(window_s=60.0)
    figures.apply(shown)
    assert figures.of("a") == Figures(1)


def test_the_window_slides_and_releases_are_told_apart() -> None:
    clock = Clock()
    figures = ReleaseFigures(window_s=60.0, clock=clock)
    figures.apply(page(error="late"))
    clock.now += 40.0
    figures.apply(page("x"))
    figures.apply(page("x", release=serving("b")))
    assert figures.all() == {"a": Figures(2, error_count=1), "b": Figures(1)}
    clock.now += 30.0
    assert figures.all() == {"a": Figures(1), "b": Figures(1)}
    clock.now += 60.0
    assert figures.all() == {}


class Feeds:
    """Makes the feeds of a shadow, when it is let."""

    def __init__(self, *video_ids: str, error: str = "") -> None:
        self.video_ids = video_ids
        self.error = error
        self.asked: list[ServingRelease | None] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, query: FeedQuery, serving: ServingRelease | None = None) -> FeedPage:
        self.asked.append(serving)
        await self.gate.wait()
        return page(*self.video_ids, release=serving, error=self.error)


def shadow(feeds: Feeds, *, percent: float = 100.0, limit: int = 2) -> tuple[Shadow, ReleaseFigures]:
    live = cast("LiveRelease", type("Live", (), {})())
    live.served = Served(1, serving("a"), (Trial("b", TrialKind.SHADOW, percent), serving("b")))
    figures = ReleaseFigures(window_s=60.0)
    made = Shadow(live, figures, limit=limit)
    made.use(feeds)
    return made, figures


async def applied(shadow: Shadow, shown: FeedPage) -> None:
    left = shadow.apply(shown)
    if left is not None:
        await left


async def test_a_shadow_is_compared_by_its_share_of_what_was_shown_and_searched_aside() -> None:
    feeds = Feeds("x", "z")
    made, figures = shadow(feeds)
    await applied(made, page("w", "x", "y", "z"))
    assert figures.of("b") == Figures(compared_count=1, mean_overlap=0.5)
    assert feeds.asked[0] is not None
    assert (feeds.asked[0].release.id, cast("Any", feeds.asked[0].searcher)) == ("b", "aside")


async def test_a_shadow_has_no_more_feeds_under_way_than_its_limit() -> None:
    feeds = Feeds("x")
    made, figures = shadow(feeds, limit=2)
    feeds.gate.clear()
    running = [asyncio.create_task(applied(made, page("x"))) for _ in range(5)]
    await asyncio.sleep(0.01)
    assert len(feeds.asked) == 2
    feeds.gate.set()
    await asyncio.gather(*running)
    assert figures.of("b").compared_count == 2
    await applied(made, page("x"))
    assert figures.of("b").compared_count == 3


@pytest.mark.parametrize(
    "shown",
    [page(history=0), page("x", served=(1,)), page("x", error="late")],
    ids=["new", "second", "failed"],
)
async def test_what_says_nothing_of_a_shadow_is_not_computed(shown: FeedPage) -> None:
    feeds = Feeds("x")
    made, figures = shadow(feeds)
    await applied(made, shown)
    assert (feeds.asked, figures.of("b")) == ([], Figures())


async def test_a_shadow_that_fails_is_not_taken_for_one_that_differs() -> None:
    made, figures = shadow(Feeds(error="Triton is gone"))
    await applied(made, page("x"))
    assert figures.of("b") == Figures()


async def test_a_shadow_takes_its_percentage_of_requests() -> None:
    feeds = Feeds("x")
    made, _ = shadow(feeds, percent=20.0)
    for _ in range(2000):
        await applied(made, page("x"))
    assert 300 < len(feeds.asked) < 500
