"""The popular list, while videos of it are deleted."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from keek_server.feed.filters import BlockedOwnerFilter
from keek_server.feed.sources import PopularSource
from keek_server.feed.types import FeedContext, FeedQuery
from keek_server.interactions.history import History
from keek_server.interactions.projection import UserState
from keek_server.releases.release import POPULAR_LIMIT, VIDEO_COLUMNS, Corpus
from keek_server.retrieval.ids import hash_id
from keek_server.retrieval.live import LiveIndex

COUNT = 3000


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """v2999 is the most popular one."""
    columns = {name: np.zeros((COUNT, *column.shape), column.dtype) for name, column in VIDEO_COLUMNS.items()}
    columns["owners"] = np.array([hash_id(f"o{n}") for n in range(COUNT)], np.uint64)
    return Corpus.build([f"v{n}" for n in range(COUNT)], columns, np.arange(COUNT))


def context(
    corpus: Corpus, deleted: set[str], *, seen: int = 0, blocked: int = 0, given: dict[str, str] | None = None
) -> FeedContext:
    """Of a user who has seen so many videos, and blocked the owners of so many of the most popular ones; some
    videos were `given` to other owners since the release was built."""
    index = LiveIndex({}, corpus.ids, corpus.columns, fresh_columns=VIDEO_COLUMNS, fresh_limit=100)
    for video_id, owner_id in (given or {}).items():
        row = {name: np.zeros((1, *column.shape), column.dtype) for name, column in VIDEO_COLUMNS.items()}
        row["owners"][0] = hash_id(owner_id)
        index.put([video_id], row)
    serving: Any = SimpleNamespace(
        release=SimpleNamespace(corpus=corpus), fresh=SimpleNamespace(deleted=deleted, index=index)
    )
    owners = frozenset(hash_id(f"o{COUNT - 1 - n}") for n in range(blocked))
    user = UserState(History(), frozenset(f"v{COUNT - 1 - n}" for n in range(seen)))
    return FeedContext(FeedQuery("u", 10, 1.0, blocked_owners=owners), serving, 0, user)


async def test_deletions_far_from_the_top_cost_nothing(corpus: Corpus) -> None:
    deleted = {f"v{n}" for n in range(2000)}
    candidates = await PopularSource().candidates(context(corpus, deleted, seen=4), 10)
    assert [candidate.video_id for candidate in candidates] == [f"v{COUNT - 5 - n}" for n in range(30)]


async def test_what_is_deleted_at_the_top_is_passed_over(corpus: Corpus) -> None:
    deleted = {f"v{COUNT - 1 - n}" for n in range(POPULAR_LIMIT - 50) if n % 10}
    candidates = await PopularSource().candidates(context(corpus, deleted), 100)
    ids = [candidate.video_id for candidate in candidates]
    left = [f"v{COUNT - 1 - n}" for n in range(POPULAR_LIMIT)]
    assert ids == [id_ for id_ in left if id_ not in deleted][: len(ids)]
    assert len(ids) == POPULAR_LIMIT - len(deleted) < 300
    assert candidates[1].owner == hash_id(f"o{ids[1][1:]}")
    assert [c.score for c in candidates] == sorted((c.score for c in candidates), reverse=True)


async def test_owners_that_are_blocked_are_passed_over(corpus: Corpus) -> None:
    candidates = await PopularSource().candidates(context(corpus, set(), blocked=100), 10)
    assert [candidate.video_id for candidate in candidates] == [f"v{COUNT - 101 - n}" for n in range(30)]


async def test_owners_that_are_blocked_are_those_of_now(corpus: Corpus) -> None:
    # v2999 is no more a blocked owner's, and v2997 is one's by now.
    asked = context(corpus, set(), blocked=2, given={"v2999": "free", "v2997": "o2998"})
    candidates = await PopularSource().candidates(asked, 10)
    assert [candidate.video_id for candidate in candidates[:3]] == ["v2999", "v2996", "v2995"]
    assert BlockedOwnerFilter().keeps(asked, candidates) == [True] * 30


async def test_who_has_seen_the_whole_list_gets_others_instead_of_nothing(corpus: Corpus) -> None:
    asked = context(corpus, {"v5"}, seen=POPULAR_LIMIT + 500)
    candidates = await PopularSource().candidates(asked, 10)
    ids = [candidate.video_id for candidate in candidates]
    assert len(set(ids)) == len(ids) == 10
    assert not asked.user.seen & set(ids)
    assert "v5" not in ids
    assert candidates[0].owner == hash_id(f"o{ids[0][1:]}")
