"""The living index, compared with brute force while videos come, change and go."""

import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.fresh import VECTORS, Column, Columns, FreshPart
from keek_server.retrieval.ids import IdTable, hash_id
from keek_server.retrieval.index import Mask, Rows, Scores, Vectors
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.query import Excluded, Query

DIMENSION = 8
COLUMNS = {VECTORS: Column(np.float32, (DIMENSION,)), "owners": Column(np.uint64)}

Float32Array = npt.NDArray[np.float32]


def vectors(count: int, seed: int) -> Float32Array:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)


def columns(rows: Float32Array, owner: int = 0) -> dict[str, npt.NDArray[np.generic]]:
    return {VECTORS: rows, "owners": np.full(len(rows), owner, np.uint64)}


class Reference:
    """The same index as a dictionary."""

    def __init__(self, ids: list[str], rows: Float32Array) -> None:
        self.rows = dict(zip(ids, rows, strict=True))

    def best(self, query: Float32Array, k: int) -> list[str]:
        return sorted(self.rows, key=lambda id_: -float(self.rows[id_] @ query))[:k]


@pytest.fixture(params=["exact", "ivf_flat"])
def main(request: pytest.FixtureRequest) -> tuple[LiveIndex, Reference]:
    rows, ids = vectors(500, 1), [f"v{i}" for i in range(500)]
    index, _ = build_index(
        rows,
        vectors(50, 2),
        IndexOptions(exact_below=1000 if request.param == "exact" else 0, recall_target=1.0),
    )
    live = LiveIndex(
        {VECTORS: index}, IdTable.build(ids), columns(rows, 1), fresh_columns=COLUMNS, fresh_limit=100_000
    )
    return live, Reference(ids, rows)


def found(live: LiveIndex, query: Float32Array, k: int) -> list[str]:
    (hits,) = live.search([Query(query, k)])
    assert (np.diff(hits.scores) <= 0).all()
    return hits.found_ids()


def test_it_finds_what_brute_force_finds_whatever_came_changed_or_went(
    main: tuple[LiveIndex, Reference],
) -> None:
    live, reference = main
    rng = np.random.default_rng(3)
    for step in range(60):
        ids = [f"v{i}" for i in rng.integers(0, 800, 5)]
        if step % 3 == 2:
            live.remove(ids)
            for id_ in ids:
                reference.rows.pop(id_, None)
        else:
            new = vectors(5, 100 + step)
            live.put(ids, columns(new))
            reference.rows.update(zip(ids, new, strict=True))
        for query in vectors(3, 200 + step):
            assert found(live, query, 20) == reference.best(query, 20)


def test_queries_that_share_a_batch_get_what_each_gets_alone(main: tuple[LiveIndex, Reference]) -> None:
    live, _ = main
    live.put(["new"], columns(vectors(1, 9), 7))
    queries = [
        Query(query, k, allowed)
        for query, k, allowed in zip(
            vectors(4, 5), (3, 9, 5, 1), (None, lambda own: own["owners"] == 7, None, None), strict=True
        )
    ]
    together = live.search(queries)
    assert [hits.found_ids() for hits in together] == [
        live.search([query])[0].found_ids() for query in queries
    ]
    assert together[1].found_ids() == ["new"]
    assert len(together[0]) == 3


def test_a_filter_holds_for_the_main_and_the_fresh_part(main: tuple[LiveIndex, Reference]) -> None:
    live, _ = main
    live.put(["a", "b"], columns(vectors(2, 9), 7))
    query = vectors(1, 4)[0]
    (fresh,) = live.search([Query(query, 10, lambda own: own["owners"] == 7)])
    assert sorted(fresh.found_ids()) == ["a", "b"]
    assert fresh.values(np.asarray(live.columns["owners"]), "owners") == [7, 7]
    (main_part,) = live.search([Query(query, 100, lambda own: own["owners"] == 1)])
    assert main_part.values(np.asarray(live.columns["owners"]), "owners") == [1] * 100


def test_a_filter_that_few_videos_meet_finds_them_all(main: tuple[LiveIndex, Reference]) -> None:
    live, reference = main
    few = {f"v{i}" for i in (3, 77, 140, 392, 499)}
    np.asarray(live.columns["owners"])[[int(id_[1:]) for id_ in few]] = 5

    def allowed(own: Columns) -> Mask:
        mask: Mask = own["owners"] == 5
        return mask

    for query in vectors(5, 4):
        (hits,) = live.search([Query(query, 10, allowed)])
        assert hits.found_ids() == [id_ for id_ in reference.best(query, 500) if id_ in few]


def test_a_row_without_a_vector_is_never_found() -> None:
    part = FreshPart(COLUMNS, limit=100)
    part.put(["seen", "unseen"], columns(np.array([[1.0] * 8, [np.nan] * 8], np.float32)))
    hits = part.search(np.ones((1, 8), np.float32), 10)
    finite = np.isfinite(hits.scores[0])
    assert [hits.id_of(row) for row in hits.rows[0][finite]] == ["seen"]


def test_vectors_of_removed_videos_are_still_known_to_histories(main: tuple[LiveIndex, Reference]) -> None:
    live, reference = main
    live.remove(["v3"])
    live.put(["new"], columns(vectors(1, 9)))
    known, rows = live.vectors_of(["v3", "nobody", "new", "v4"])
    assert known.tolist() == [True, False, True, True]
    np.testing.assert_array_equal(rows, [reference.rows["v3"], vectors(1, 9)[0], reference.rows["v4"]])
    assert live.value("v3", VECTORS) is None
    assert live.value("nobody", VECTORS) is None


def test_columns_are_read_by_id_of_what_lives(main: tuple[LiveIndex, Reference]) -> None:
    live, reference = main
    live.put(["new", "v7"], columns(vectors(2, 9), 5))
    live.remove(["v3"])
    known, read = live.columns_of(["v3", "new", "nobody", "v4", "v7"], ["owners", VECTORS])
    assert known.tolist() == [False, True, False, True, True]
    assert read["owners"].tolist() == [5, 1, 5]
    np.testing.assert_array_equal(read[VECTORS], [vectors(2, 9)[0], reference.rows["v4"], vectors(2, 9)[1]])
    assert live.columns_of([], ["owners"])[1]["owners"].tolist() == []


def test_of_more_than_the_limit_the_newest_stay() -> None:
    part = FreshPart(COLUMNS, limit=5000)
    rows = vectors(30_000, 1)
    rows[-1] *= 100
    for start in range(0, len(rows), 1000):
        part.put([f"v{i}" for i in range(start, start + 1000)], columns(rows[start : start + 1000]))
    assert 5000 <= len(part) < 15_000
    assert "v29999" in part
    assert "v0" not in part
    hits = part.search(rows[-1:], 3)
    best = hits.rows[0][np.argmax(hits.scores[0])]
    assert hits.id_of(best) == "v29999"


def test_hits_stay_readable_when_their_rows_have_gone() -> None:
    part = FreshPart(COLUMNS, limit=100)
    part.put(["old"], columns(vectors(1, 1)))
    hits = part.search(vectors(1, 1), 1)
    for start in range(0, 20_000, 1000):
        part.put([f"v{start + i}" for i in range(1000)], columns(vectors(1000, 2)))
    assert "old" not in part
    assert hits.id_of(int(hits.rows[0][0])) == "old"


def test_searches_in_another_thread_see_whole_rows_while_rows_come() -> None:
    """Every row's vector is its number: a torn row would score what no row scores."""
    part = FreshPart(COLUMNS, limit=100_000)
    failures: list[object] = []
    done = threading.Event()

    def search() -> None:
        query = np.eye(1, DIMENSION, dtype=np.float32)
        while not done.is_set():
            hits = part.search(query, 50)
            for score, row in zip(hits.scores[0], hits.rows[0], strict=True):
                if np.isfinite(score) and hits.id_of(int(row)) != f"v{int(score)}":
                    failures.append((score, row))

    thread = threading.Thread(target=search)
    thread.start()
    for number in range(1, 6000):
        row = np.zeros((1, DIMENSION), np.float32)
        row[0, 0] = number
        part.put([f"v{number}"], columns(row))
    done.set()
    thread.join()
    assert not failures


def test_an_index_of_another_column_is_searched_by_that_column(tmp_path: Path) -> None:
    wide = np.random.default_rng(1).normal(size=(20, 16)).astype(np.float32)
    rows, ids = vectors(20, 1), [f"v{i}" for i in range(20)]
    index, _ = build_index(rows, rows, IndexOptions(exact_below=100, recall_target=1.0))
    live = LiveIndex(
        {
            VECTORS: index,
            "clip": build_index(wide, wide, IndexOptions(exact_below=100, recall_target=1.0))[0],
        },
        IdTable.build(ids),
        columns(rows),
        fresh_columns={**COLUMNS, "clip": Column(np.float16, (16,))},
        fresh_limit=100,
    )
    live.put(["new"], {**columns(vectors(1, 5)), "clip": 100 * wide[:1]})
    (hits,) = live.search([Query(wide[0], 2, by="clip")])
    assert hits.found_ids() == ["new", "v0"]


def test_rows_that_leave_the_fresh_part_are_found_as_they_were_built() -> None:
    """A corpus that is imported again, and is larger than the fresh part, stays whole."""
    rows, ids = vectors(20_000, 1), [f"v{i}" for i in range(20_000)]
    index, _ = build_index(rows, rows[:50], IndexOptions(exact_below=100_000, recall_target=1.0))
    live = LiveIndex(
        {VECTORS: index}, IdTable.build(ids), columns(rows), fresh_columns=COLUMNS, fresh_limit=5000
    )
    live.remove(["v7"])
    for start in range(0, 20_000, 500):
        part = [id_ for id_ in ids[start : start + 500] if id_ != "v7"]
        live.put(part, columns(np.array([rows[int(id_[1:])] for id_ in part])))
    (hits,) = live.search([Query(rows[0], 30_000)])
    found_ids = hits.found_ids()
    assert len(found_ids) == len(set(found_ids)) == 19_999
    assert "v7" not in found_ids


def test_rows_that_change_often_do_not_push_others_out() -> None:
    part = FreshPart(COLUMNS, limit=5000)
    part.put(["quiet"], columns(vectors(1, 1)))
    for turn in range(100):
        assert part.put([f"busy{i}" for i in range(1000)], columns(vectors(1000, turn))) == []
    assert "quiet" in part
    assert len(part) == 1001
    hits = part.search(np.ones((1, DIMENSION), np.float32), 5000)
    finite = np.isfinite(hits.scores[0])
    assert sorted(hits.id_of(int(row)) for row in hits.rows[0][finite]) == sorted(
        ["quiet", *(f"busy{i}" for i in range(1000))]
    )
    assert len(part._blocks) <= part._most_blocks


def test_a_query_that_is_not_finite_spoils_no_other() -> None:
    part = FreshPart(COLUMNS, limit=100)
    part.put(["a"], columns(np.ones((1, DIMENSION), np.float32)))
    queries = np.array([[np.nan] * DIMENSION, [1.0] * DIMENSION], np.float32)
    hits = part.search(queries, 1)
    assert not np.isfinite(hits.scores[0]).any()
    assert hits.scores[1].tolist() == [DIMENSION]


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


def test_a_filter_and_what_is_excluded_hold_both_and_for_the_fresh_part_too(
    main: tuple[LiveIndex, Reference],
) -> None:
    live, reference = main
    new = vectors(40, 9)
    live.put([f"new{i}" for i in range(40)], columns(new, 7))
    reference.rows.update({f"new{i}": row for i, row in enumerate(new)})
    query = vectors(1, 4)[0]
    best = reference.best(query, 100)
    excluded = Excluded(frozenset(best[:30]), frozenset(map(hash_id, best[30:40])))
    (hits,) = live.search([Query(query, 60, excluded=excluded)])
    assert hits.found_ids() == best[40:]
    (hits,) = live.search([Query(query, 100, lambda own: own["owners"] == 7, excluded=excluded)])
    kept = [id_ for id_ in reference.best(query, 600) if id_ not in best[:40] and id_.startswith("new")]
    assert hits.found_ids() == kept


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
