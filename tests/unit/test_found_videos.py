"""Found videos that are kept: given again only while a search would find the same."""

import numpy as np

from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.found import FoundVideo, FoundVideos
from keek_server.retrieval.fresh import VECTORS, Column
from keek_server.retrieval.ids import IdTable, hash_id
from keek_server.retrieval.index import Vectors
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.query import Excluded, Query

DIMENSION = 8
COUNT = 300
ANYTHING: frozenset[str] = frozenset()


def rows(count: int, seed: int) -> Vectors:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)


def owners(count: int, owner: int) -> dict[str, np.ndarray]:
    return {"owners": np.full(count, owner, np.uint64)}


class Videos:
    """An index, and what is kept of it."""

    def __init__(self, limit: int = 10) -> None:
        vectors = rows(COUNT, 1)
        index, _ = build_index(vectors, vectors, IndexOptions(COUNT + 1, 1.0))
        columns = {VECTORS: Column(np.float32, (DIMENSION,)), "owners": Column(np.uint64)}
        ids = IdTable.build([f"v{n}" for n in range(COUNT)])
        main = {VECTORS: vectors, **owners(COUNT, 2**63 + 1)}
        self.index = LiveIndex({VECTORS: index}, ids, main, fresh_columns=columns, fresh_limit=100)
        self.found = FoundVideos(limit)

    def search(
        self, vector: Vectors, k: int, seen: frozenset[str] = ANYTHING, served: frozenset[int] = frozenset()
    ) -> list[FoundVideo]:
        (hits,) = self.index.search([Query(vector, k, excluded=Excluded(seen, served))])
        values = hits.values(self.index.columns["owners"], "owners")
        return list(zip(hits.found_ids(), hits.scores.tolist(), values, strict=True))

    def keep(self, user: str, vector: Vectors, k: int, seen: frozenset[str] = ANYTHING) -> list[FoundVideo]:
        change_count = self.index.change_count
        found = self.search(vector, k, seen)
        whole = len(found) < k
        self.found.keep(user, vector, found, seen=seen, change_count=change_count, is_whole=whole)
        return found

    def find(
        self,
        user: str,
        vector: Vectors,
        count: int,
        seen: frozenset[str] = ANYTHING,
        served: frozenset[int] = frozenset(),
    ) -> list[FoundVideo] | None:
        return self.found.find(user, vector, self.index, count, seen=seen, served=served)


def test_what_was_found_is_given_again_with_scores_and_owners() -> None:
    videos, vector = Videos(), rows(1, 2)[0]
    found = videos.keep("u", vector, 20)
    assert videos.find("u", vector, 20) == found
    assert videos.find("u", vector, 7) == found[:7]
    assert found[0][2] == 2**63 + 1


def test_another_vector_other_seen_videos_and_other_users_are_searched_for() -> None:
    videos, vector = Videos(), rows(1, 2)[0]
    videos.keep("u", vector, 20, frozenset({"v1"}))
    assert videos.find("u", vector.copy(), 10, frozenset({"v1"})) is None
    assert videos.find("u", vector, 10) is None
    assert videos.find("w", vector, 10, frozenset({"v1"})) is None
    assert videos.find("u", vector, 10, frozenset({"v1"})) is not None


def test_later_pages_are_what_a_search_would_find_or_are_searched_for() -> None:
    videos, vector = Videos(), rows(1, 2)[0]
    found = videos.keep("u", vector, 20)
    served = frozenset(hash_id(video_id) for video_id, _, _ in found[:8:2])
    assert videos.find("u", vector, 16, served=served) == videos.search(vector, 16, served=served)
    assert videos.find("u", vector, 17, served=served) is None


def test_all_there_are_is_enough_however_many_are_wanted() -> None:
    videos, vector = Videos(), rows(1, 2)[0]
    found = videos.keep("u", vector, COUNT + 1)
    assert len(found) == COUNT
    assert videos.find("u", vector, 2 * COUNT) == found
    videos.index.put(["new"], {VECTORS: -10 * vector[None], **owners(1, 5)})
    assert videos.find("u", vector, 2 * COUNT) is None


def test_a_user_without_any_video_has_none_again() -> None:
    videos, vector = Videos(), rows(1, 2)[0]
    everything = frozenset(f"v{n}" for n in range(COUNT))
    assert videos.keep("u", vector, 5, everything) == []
    assert videos.find("u", vector, 5, everything) == []


def test_whatever_comes_changes_or_goes_what_is_given_is_what_a_search_finds() -> None:
    videos, rng, queries = Videos(), np.random.default_rng(5), list(rows(4, 3))
    seen = frozenset({"v3", "v4", "v5"})
    given = dropped = 0
    for step in range(300):
        ids = [f"v{n}" for n in rng.integers(0, COUNT + 50, 2).tolist()]
        if step % 3 == 2:
            videos.index.remove(ids)
        else:
            # Most lie far from what the users like, as new videos do.
            videos.index.put(ids, {VECTORS: rows(2, 100 + step) * rng.choice([0.3, 2.0]), **owners(2, step)})
        for number, query in enumerate(queries):
            user = f"u{number}"
            kept = videos.find(user, query, 10, seen)
            if kept is None:
                videos.keep(user, query, 20, seen)
                dropped += 1
            else:
                assert [v[0] for v in kept] == [v[0] for v in videos.search(query, 10, seen)]
                given += 1
    assert given > 100
    assert dropped > 100


def test_more_changes_than_are_remembered_are_searched_for() -> None:
    videos, vector = Videos(), rows(1, 2)[0]
    videos.keep("u", vector, 10)
    for _ in range(600):
        videos.index.remove(["nothing", "of that name"])
    assert videos.find("u", vector, 10) is None


def test_the_latest_users_are_kept_and_none_where_none_may_be() -> None:
    videos, vector = Videos(limit=2), rows(1, 2)[0]
    for user in ("a", "b", "a", "c"):
        videos.keep(user, vector, 5)
    assert len(videos.found) == 2
    assert videos.find("b", vector, 5) is None
    assert videos.find("a", vector, 5) is not None
    nothing = Videos(limit=0)
    nothing.keep("a", vector, 5)
    assert nothing.find("a", vector, 5) is None
