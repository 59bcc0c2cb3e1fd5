"""Personalised videos by chance: each with the odds that are logged, and none that could not be shown."""

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from keek_server.feed.drawing import VIDEO_POOL
from keek_server.feed.mixing import QuotaSelector
from keek_server.feed.parameters import FeedParameters
from keek_server.feed.types import Candidate, FeedSource, Selection

P, T, POP = FeedSource.PERSONALISED, FeedSource.TRENDING, FeedSource.POPULAR


def candidates(source: FeedSource, count: int, *, prefix: str = "", owners: int = 0) -> list[Candidate]:
    """Best first; of so many owners in turn, or of none that is known."""
    prefix = prefix or source.name.lower()
    return [
        Candidate(f"{prefix}{i}", source, float(count - i), 1 + i % owners if owners else 0)
        for i in range(count)
    ]


def select(
    given: list[Candidate],
    *,
    size: int = 10,
    share: float = 1.0,
    cap: int = 2,
    exploration: float = 0.0,
    video_exploration: float = 0.5,
    allowed: Any = None,
) -> Selection:
    context: Any = SimpleNamespace(
        query=SimpleNamespace(page_size=size, served=(), allowed=allowed),
        failed=frozenset(),
        seed=random.getrandbits(64),
        parameters=FeedParameters(share, cap, None, exploration, video_exploration),
    )
    return QuotaSelector().select(context, given)


def ids(page: Selection) -> list[str]:
    return [item.video_id for item in page.items]


def test_each_page_comes_as_often_as_its_odds_say_and_all_odds_sum_to_one() -> None:
    random.seed(1)
    count = 20_000
    pages: Counter[tuple[str, ...]] = Counter()
    odds: dict[tuple[str, ...], float] = {}
    for _ in range(count):
        page = select(candidates(P, 4), size=3, video_exploration=0.6)
        assert page.video_propensities is not None
        first, second, third = page.video_propensities
        pages[tuple(ids(page))] += 1
        odds[tuple(ids(page))] = first * second * third
    assert len(odds) == 4 * 3 * 2
    assert sum(odds.values()) == pytest.approx(1.0)
    for page, own in odds.items():
        # Within five standard deviations.
        assert abs(pages[page] / count - own) < 5 * (own * (1 - own) / count) ** 0.5


def test_slots_draw_among_the_best_that_are_left() -> None:
    random.seed(2)
    shown: Counter[str] = Counter()
    for _ in range(20_000):
        page = select(candidates(P, 40), size=1, video_exploration=0.5)
        (video_id,), (odds,) = ids(page), page.video_propensities or ()
        shown[video_id] += 1
        assert odds == pytest.approx((0.5 if video_id == "personalised0" else 0.0) + 0.5 / VIDEO_POOL)
        assert page.pool is not None
        assert page.pool.count(0) == 1
    assert set(shown) == {f"personalised{i}" for i in range(VIDEO_POOL)}
    assert shown["personalised0"] / 20_000 == pytest.approx(0.5 + 0.5 / VIDEO_POOL, abs=0.02)
    # 500 expected of each, with a standard deviation of 22.
    assert all(380 < shown[f"personalised{i}"] < 620 for i in range(1, VIDEO_POOL))


def test_nothing_comes_twice_nor_over_its_owners_cap_nor_what_no_source_gave() -> None:
    random.seed(3)
    given = candidates(P, 60, prefix="v", owners=9) + candidates(T, 30, prefix="v", owners=9)
    known = {candidate.video_id for candidate in given}
    for _ in range(500):
        page = select(given, share=0.7, video_exploration=1.0, exploration=0.3)
        assert len(set(ids(page))) == 10
        assert set(ids(page)) <= known
        assert max(Counter(item.owner for item in page.items).values()) <= 2


def test_where_owners_are_few_the_page_is_full_and_what_lifts_the_cap_is_certain() -> None:
    random.seed(4)
    for _ in range(200):
        page = select(candidates(P, 30, owners=3), video_exploration=1.0)
        assert len(set(ids(page))) == 10
        assert page.video_propensities is not None
        assert page.pool is not None
        drawn = [entry for entry in page.pool if isinstance(entry, int)]
        assert len(drawn) == 6
        assert all((odds < 1.0) <= (place in drawn) for place, odds in enumerate(page.video_propensities))


def test_what_a_slot_was_drawn_among_can_be_told_from_the_log() -> None:
    """The odds of every slot follow from the pool: dropped videos, owners and other sources included."""
    random.seed(5)
    given = candidates(P, 60, prefix="v", owners=9) + candidates(T, 12, prefix="v") + candidates(POP, 10)
    dropped = 0
    for _ in range(500):
        page = select(given, share=0.7, video_exploration=0.4, exploration=0.2)
        assert page.pool is not None
        assert page.video_propensities is not None
        for place, item in enumerate(page.items):
            if place not in page.pool:
                assert item.source is not P
                assert page.video_propensities[place] == 1.0
                continue
            left = [entry for entry in page.pool if until(entry) >= place][:VIDEO_POOL]
            odds = 0.6 * (left[0] == place) + 0.4 / len(left)
            assert page.video_propensities[place] == pytest.approx(odds)
            assert place in left
        dropped += any(isinstance(entry, tuple) for entry in page.pool)
    assert dropped > 100


def until(entry: int | str | tuple[str, int]) -> int:
    """The last item that an entry could be."""
    return entry if isinstance(entry, int) else 1_000 if isinstance(entry, str) else entry[1] - 1


def test_a_request_that_asks_for_something_is_not_drawn_for() -> None:
    page = select(candidates(P, 30), allowed=lambda columns: columns)
    assert ids(page) == [f"personalised{i}" for i in range(10)]
    assert (page.propensities, page.video_propensities, page.pool) == (None, None, None)


def test_where_nothing_is_personalised_nothing_is_drawn() -> None:
    page = select(candidates(T, 30) + candidates(POP, 30), share=0.7)
    assert page.pool is None
    assert page.video_propensities == [1.0] * 10
