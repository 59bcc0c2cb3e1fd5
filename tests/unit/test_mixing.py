"""The mix: quotas, refill, owners, no duplicates."""

import math
import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from keek_server.feed.mixing import QuotaSelector
from keek_server.feed.parameters import FeedParameters
from keek_server.feed.scorers import SourceScorer
from keek_server.feed.types import Candidate, FeedSource, Selection

P, T, POP, C = FeedSource.PERSONALISED, FeedSource.TRENDING, FeedSource.POPULAR, FeedSource.CACHED


def candidates(source: FeedSource, count: int, *, prefix: str = "", owner: int = 0) -> list[Candidate]:
    prefix = prefix or source.name.lower()
    return [Candidate(f"{prefix}{i}", source, float(count - i), owner) for i in range(count)]


def select(
    given: list[Candidate],
    *,
    size: int = 10,
    share: float = 0.7,
    cap: int = 2,
    served: int = 0,
    trending_slots: int | None = None,
    exploration: float = 0.0,
    failed: frozenset[FeedSource] = frozenset(),
    seed: int | None = None,
) -> Selection:
    context: Any = SimpleNamespace(
        query=SimpleNamespace(page_size=size, served=(0,) * served, allowed=None),
        failed=failed,
        parameters=FeedParameters(share, cap, trending_slots, exploration),
        seed=random.getrandbits(64) if seed is None else seed,
    )
    return QuotaSelector().select(context, given)


def counts(selection: Selection) -> dict[FeedSource, int]:
    return dict(Counter(item.source for item in selection.items))


def test_ten_slots_are_shared_seven_to_three() -> None:
    selection = select(candidates(P, 30) + candidates(T, 30) + candidates(POP, 30))
    assert counts(selection) == {P: 7, T: 3}
    assert [(share.source, share.quota_count, share.served_count) for share in selection.shares] == [
        (P, 7, 7),
        (T, 3, 3),
    ]


@pytest.mark.parametrize("size", [1, 3, 7, 10, 100])
def test_the_share_holds_over_a_session_whatever_the_page_size(size: int) -> None:
    trending = served = 0
    while served < 300:
        page = select(candidates(P, 400) + candidates(T, 400), size=size, served=served)
        trending += counts(page).get(T, 0)
        served += len(page.items)
        assert abs(trending - 0.3 * served) < 1


@pytest.mark.parametrize(("share", "expected"), [(1.0, {P: 10}), (0.0, {T: 10}), (0.5, {P: 5, T: 5})])
def test_other_shares_are_kept_too(share: float, expected: dict[FeedSource, int]) -> None:
    assert counts(select(candidates(P, 30) + candidates(T, 30), share=share)) == expected


def test_without_personalised_candidates_popular_ones_take_their_slots() -> None:
    selection = select(candidates(T, 30) + candidates(POP, 30))
    assert counts(selection) == {T: 3, POP: 7}
    assert (P, 7, 0) in [(share.source, share.quota_count, share.served_count) for share in selection.shares]


def test_without_trending_candidates_personalised_ones_take_their_slots() -> None:
    assert counts(select(candidates(P, 30) + candidates(POP, 30))) == {P: 10}


def test_trending_refills_when_nothing_else_is_left() -> None:
    assert counts(select(candidates(T, 30))) == {T: 10}


def test_a_short_page_holds_everything_there_is() -> None:
    selection = select(candidates(P, 2) + candidates(T, 1) + candidates(POP, 1))
    assert len(selection.items) == 4


def test_no_video_stands_twice_and_what_trends_keeps_its_slots() -> None:
    selection = select(candidates(P, 30, prefix="v") + candidates(T, 30, prefix="v"))
    assert len({item.video_id for item in selection.items}) == 10
    assert counts(selection) == {P: 7, T: 3}


def test_an_owner_gets_at_most_its_cap() -> None:
    selection = select(candidates(P, 30, owner=5) + candidates(POP, 30))
    assert Counter(item.owner for item in selection.items)[5] == 2
    assert len(selection.items) == 10


def test_the_cap_yields_rather_than_leave_the_page_short() -> None:
    assert len(select(candidates(P, 30, owner=5)).items) == 10


def test_unknown_owners_are_not_capped() -> None:
    assert counts(select(candidates(P, 30, owner=0))) == {P: 10}


def test_scores_that_are_no_numbers_sink() -> None:
    broken = [Candidate("nan", P, float("nan")), Candidate("inf", P, float("inf")), Candidate("ok", P, -5.0)]
    context: Any = None
    assert SourceScorer().score(context, broken)[0].video_id == "ok"


def test_for_personalised_videos_that_failed_cached_ones_stand_in_then_trending_then_popular() -> None:
    failed = frozenset({P})
    given = candidates(C, 5) + candidates(T, 4) + candidates(POP, 30)
    assert counts(select(given, failed=failed)) == {C: 5, T: 4, POP: 1}
    assert counts(select(candidates(T, 30) + candidates(POP, 30), failed=failed)) == {T: 10}
    assert counts(select(candidates(POP, 30), failed=failed | {T, C})) == {POP: 10}


def test_for_trending_videos_that_failed_popular_ones_stand_in_and_the_mix_stays() -> None:
    given = candidates(P, 30) + candidates(POP, 30)
    assert counts(select(given, failed=frozenset({T}))) == {P: 7, POP: 3}
    assert counts(select(candidates(P, 30), failed=frozenset({T}))) == {P: 10}


def test_trending_slots_are_counted_on_each_page() -> None:
    for size, expected in ((10, {P: 6, T: 4}), (3, {T: 3})):
        page = select(candidates(P, 30) + candidates(T, 30), size=size, trending_slots=4)
        assert counts(page) == expected


def test_without_exploration_nothing_is_left_to_chance() -> None:
    given = candidates(P, 30) + candidates(T, 30)
    page = select(given)
    assert (page.propensities, page.video_propensities, page.pool) == (None, None, None)


def test_exploration_draws_the_sources_of_some_slots_as_often_as_it_says() -> None:
    given = candidates(P, 200) + candidates(T, 200)
    usual = [item.source for item in select(given, size=100).items]
    drawn = [0, 0]
    for _ in range(200):
        page = select(given, size=100, exploration=0.2)
        assert page.propensities is not None
        for own, item, propensity in zip(usual, page.items, page.propensities, strict=True):
            assert propensity == pytest.approx(0.9 if item.source is own else 0.1)
            drawn[item.source is own] += 1
    # 2,000 of 20,000 expected, with a standard deviation of 42.
    assert 1_750 < drawn[False] < 2_250


def test_a_slot_that_another_source_had_to_fill_says_nothing_of_odds() -> None:
    page = select(candidates(T, 30) + candidates(POP, 30), exploration=0.1, cap=100)
    assert page.propensities is not None
    for item, propensity in zip(page.items, page.propensities, strict=True):
        assert math.isnan(propensity) == (item.source is POP)


def test_a_page_is_as_planned_where_each_slot_has_a_video_of_its_own_source() -> None:
    plenty = candidates(P, 30) + candidates(T, 30)
    assert select(plenty).as_planned
    assert not select(candidates(P, 30) + candidates(T, 2)).as_planned
    assert not select(candidates(P, 6) + candidates(T, 30)).as_planned
    # Enough of them, but all of one owner.
    assert not select(candidates(P, 30, owner=1) + candidates(T, 30)).as_planned
    assert not select([]).as_planned


def test_a_page_that_is_chosen_again_with_more_candidates_draws_the_same() -> None:
    few = candidates(P, 6) + candidates(T, 30)
    drawn = set()
    for seed in range(200):
        first, second = (select(each, exploration=0.5, seed=seed) for each in (few, few + candidates(POP, 9)))
        assert [s.quota_count for s in first.shares if s.source in (P, T)] == [
            s.quota_count for s in second.shares if s.source in (P, T)
        ]
        drawn.add(first.shares[0].quota_count)
    assert len(drawn) > 3
