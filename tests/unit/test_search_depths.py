"""How deep the living index searches: what few meet, or many hide, is found without looking at everything."""

import numpy as np
import numpy.typing as npt
import pytest
from live_rows import COLUMNS, Float32Array, columns, vectors

from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.fresh import VECTORS, Columns
from keek_server.retrieval.ids import IdTable, hash_id
from keek_server.retrieval.index import Mask, Rows, Scores, Vectors
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.query import Excluded, Query

LARGE = 20_000


@pytest.fixture(scope="module", params=["exact", "ivf_fp16"])
def large(request: pytest.FixtureRequest) -> tuple[LiveIndex, Float32Array]:
    """Rows whose first value says on which side they lie, owner 1 on the positive one."""
    rows = vectors(LARGE, 1)
    index, _ = build_index(rows, vectors(50, 2), IndexOptions(0, 1.0, kind=request.param))
    own = columns(rows)
    own["owners"] = (rows[:, 0] > 0).astype(np.uint64)
    table = IdTable.build([f"v{i}" for i in range(LARGE)])
    return LiveIndex({VECTORS: index}, table, own, fresh_columns=COLUMNS, fresh_limit=100), rows


def best_of(rows: Float32Array, query: Float32Array, k: int, may: npt.NDArray[np.bool_]) -> set[int]:
    return set(np.argsort(-np.where(may, rows @ query, -np.inf), kind="stable")[:k].tolist())


@pytest.mark.parametrize("side", [-4.0, -1.0, 0.0, 1.0, 4.0])
@pytest.mark.parametrize("k", [10, 100])
def test_a_filter_finds_the_best_also_where_few_lie_near_the_query(
    large: tuple[LiveIndex, Float32Array], side: float, k: int
) -> None:
    live, rows = large
    query = vectors(1, 4)[0]
    query[0] = side
    (hits,) = live.search([Query(query, k, lambda own: own["owners"] == 1)])
    expected = best_of(rows, query, k, rows[:, 0] > 0)
    assert len(hits) == k
    # In float16 two of nearly the same score may change places at the end.
    assert len(expected & set(hits.rows.tolist())) >= k - 1


def test_a_filter_that_many_rows_meet_is_asked_about_few(large: tuple[LiveIndex, Float32Array]) -> None:
    live, _ = large
    asked = []

    def allowed(own: Columns) -> Mask:
        asked.append(len(own["owners"]))
        mask: Mask = own["owners"] == 1
        return mask

    query = vectors(1, 4)[0]
    query[0] = 1.0
    live.search([Query(query, 10, allowed)])
    # A sample of all, what was found, and the fresh part.
    assert sum(asked) < LARGE / 4


@pytest.mark.parametrize("together", [1, 5])
@pytest.mark.parametrize("count", [1, 20, 300, 5000, LARGE - 3])
def test_the_nearest_are_found_behind_those_that_are_excluded(
    large: tuple[LiveIndex, Float32Array], count: int, together: int
) -> None:
    live, rows = large
    queries = vectors(together, 4)
    nearest = np.argsort(-(rows @ queries[0]), kind="stable")
    ids = [f"v{row}" for row in nearest[:count]]
    half = count // 2
    excluded = Excluded(frozenset(ids[:half]), frozenset(map(hash_id, ids[half:])))
    asked = [Query(queries[0], 20, excluded=excluded), *(Query(query, 20) for query in queries[1:])]
    found = live.search(asked)
    expected = nearest[count : count + 20].tolist()
    assert not set(found[0].rows.tolist()) & set(nearest[:count].tolist())
    assert len(found[0]) == len(expected)
    # In float16 two of nearly the same score may change places at the end.
    assert len(set(found[0].rows.tolist()) & set(expected)) >= len(expected) - 1
    for query, hits in zip(queries[1:], found[1:], strict=True):
        assert hits.rows.tolist() == live.search([Query(query, 20)])[0].rows.tolist()


def test_few_are_looked_at_where_few_are_excluded(large: tuple[LiveIndex, Float32Array]) -> None:
    live, rows = large
    depths = []

    class Observed:
        def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Scores, Rows]:
            depths.append(k)
            return live._indexes[VECTORS].search(queries, k, allowed)

    observed = LiveIndex(
        {VECTORS: Observed()}, live.ids, live.columns, fresh_columns=COLUMNS, fresh_limit=100
    )
    query = vectors(1, 4)[0]
    near = {f"v{row}" for row in np.argsort(-(rows @ query))[:10]}
    far = {f"v{row}" for row in np.argsort(rows @ query)[:2000]}
    assert len(observed.search([Query(query, 20, excluded=Excluded(near | far))])[0]) == 20
    assert depths == [40]


def test_what_lies_behind_many_removed_rows_is_found() -> None:
    rows = vectors(LARGE, 1)
    index, _ = build_index(rows, vectors(50, 2), IndexOptions(0, 1.0, kind="exact"))
    table = IdTable.build([f"v{i}" for i in range(LARGE)])
    live = LiveIndex({VECTORS: index}, table, columns(rows), fresh_columns=COLUMNS, fresh_limit=100)
    query = vectors(1, 4)[0]
    nearest = np.argsort(-(rows @ query))
    live.remove([f"v{row}" for row in nearest[:700]])
    others = vectors(3, 5)
    found = live.search([Query(query, 100), *(Query(other, 100) for other in others)])
    assert found[0].rows.tolist() == nearest[700:800].tolist()
    alive = np.ones(LARGE, np.bool_)
    alive[nearest[:700]] = False
    for other, hits in zip(others, found[1:], strict=True):
        assert set(hits.rows.tolist()) == best_of(rows, other, 100, alive)


def test_a_search_does_not_go_through_all_rows_when_most_were_replaced() -> None:
    rows = vectors(2000, 1)
    built, _ = build_index(rows, rows[:50], IndexOptions(0, 1.0, kind="ivf_flat"))
    depths = []

    class Observed:
        def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Scores, Rows]:
            depths.append(k)
            return built.search(queries, k, allowed)

    ids = [f"v{i}" for i in range(2000)]
    live = LiveIndex(
        {VECTORS: Observed()}, IdTable.build(ids), columns(rows), fresh_columns=COLUMNS, fresh_limit=10_000
    )
    for replaced in (900, 1100, 1999, 2000):
        live.put(ids[:replaced], columns(rows[:replaced]))
        hits = live.search([Query(query, 20) for query in vectors(8, 3)])
        for query, own in zip(vectors(8, 3), hits, strict=True):
            assert own.found_ids() == [f"v{row}" for row in np.argsort(-(rows @ query))[:20]]
    assert max(depths) <= 200
