"""The living index, compared with brute force while videos come, change and go."""

from pathlib import Path

import numpy as np
import pytest
from live_rows import COLUMNS, Float32Array, columns, vectors

from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.fresh import VECTORS, Column, Columns
from keek_server.retrieval.ids import IdTable, hash_id
from keek_server.retrieval.index import Mask
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.query import Excluded, Query


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
