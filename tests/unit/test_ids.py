"""Ids and rows find each other, before and after save and load."""

from pathlib import Path

import numpy as np
import pytest

from keek_server.retrieval.ids import IdTable, hash_id


@pytest.fixture(params=["built", "reopened"])
def ids(request: pytest.FixtureRequest, tmp_path: Path) -> IdTable:
    table = IdTable.build(["v1", "übergröße", "v2", "a" * 128, "😀"])
    if request.param == "built":
        return table
    table.save(tmp_path)
    return IdTable.open(tmp_path)


def test_ids_and_rows_find_each_other(ids: IdTable) -> None:
    assert [ids.id_of(row) for row in range(len(ids))] == ["v1", "übergröße", "v2", "a" * 128, "😀"]
    assert ids.rows_of(["😀", "v2", "nobody", "", "v1"]).tolist() == [4, 2, -1, -1, 0]
    assert ids.rows_of([]).tolist() == []


def test_colliding_hashes_do_not_give_a_wrong_row() -> None:
    table = IdTable.build(["one", "two"])
    forged = IdTable(
        table._bytes, table._offsets, np.array([hash_id("one")] * 2, np.uint64), np.array([1, 0])
    )
    assert forged.rows_of(["one", "two"]).tolist() == [0, -1]


def test_rows_are_found_by_the_hashes_of_their_ids(ids: IdTable) -> None:
    assert sorted(ids.rows_with({hash_id("😀"), hash_id("v1"), hash_id("nobody")}).tolist()) == [0, 4]
    assert ids.rows_with(set()).tolist() == []
    assert IdTable.build([]).rows_with({1}).tolist() == []
