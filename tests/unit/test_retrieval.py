"""Ids and the main index, compared with brute force, before and after save and load."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from keek_server.retrieval.build import build_index, recall_at_k
from keek_server.retrieval.fresh import VECTORS
from keek_server.retrieval.ids import IdTable, hash_id
from keek_server.retrieval.index import FaissIndex, IndexReport, Vectors
from keek_server.retrieval.live import LiveIndex, Query
from keek_server.retrieval.searcher import Searcher, search_executor


def clustered(count: int, seed: int) -> Vectors:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(50, 64))
    return (centres[rng.integers(0, 50, count)] + 0.5 * rng.normal(size=(count, 64))).astype(np.float32)


VIDEOS, USERS = clustered(5000, 1), clustered(200, 2)


@pytest.fixture(params=["exact", "ivf_flat"])
def built(request: pytest.FixtureRequest) -> tuple[FaissIndex, IndexReport]:
    exact_below = 10_000 if request.param == "exact" else 0
    index, report = build_index(VIDEOS, USERS, exact_below=exact_below, recall_target=0.99)
    assert report.kind == request.param
    return index, report


@pytest.fixture(params=["built", "reopened"])
def index(
    request: pytest.FixtureRequest, built: tuple[FaissIndex, IndexReport], tmp_path: Path
) -> FaissIndex:
    if request.param == "built":
        return built[0]
    built[0].save(tmp_path / "index.faiss")
    return FaissIndex.open(tmp_path / "index.faiss", built[1])


def test_recall_against_brute_force_is_what_was_promised(index: FaissIndex) -> None:
    exact = np.argsort(-(USERS @ VIDEOS.T), axis=1, kind="stable")[:, :100]
    scores, rows = index.search(USERS, 100)
    assert recall_at_k(rows, exact) >= 0.99
    np.testing.assert_allclose(scores, np.take_along_axis(USERS @ VIDEOS.T, rows, 1), rtol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_more_than_there_are_gives_what_there_is(index: FaissIndex) -> None:
    _, rows = index.search(USERS[:2], 10_000)
    assert rows.shape == (2, 5000)


def test_the_measured_recall_is_the_true_one(built: tuple[FaissIndex, IndexReport]) -> None:
    exact = np.argsort(-(USERS @ VIDEOS.T), axis=1, kind="stable")[:, :100]
    found = built[0].search(USERS, 100)[1]
    assert built[1].recall_at_100 == pytest.approx(recall_at_k(found, exact), abs=1e-3)


@pytest.mark.parametrize("count", [1, 15, 400, 30_000])
def test_a_corpus_of_any_size_reaches_the_recall_with_no_more_lists_than_needed(count: int) -> None:
    videos, users = clustered(count, 3), clustered(64, 4)
    index, report = build_index(videos, users, exact_below=0, recall_target=0.95)
    exact = np.argsort(-(users @ videos.T), axis=1, kind="stable")[:, :100]
    assert recall_at_k(index.search(users, 100)[1], exact) >= 0.95
    assert 1 <= report.nprobe <= report.nlist <= count
    if report.nprobe > 1:
        fewer = FaissIndex(index._index, report.nprobe - 1)
        assert recall_at_k(fewer.search(users, 100)[1], exact) < 0.95


async def test_batched_searches_give_what_single_ones_give(index: FaissIndex) -> None:
    ids = IdTable.build([f"v{i}" for i in range(len(VIDEOS))])
    live = LiveIndex({VECTORS: index}, ids, {}, fresh_columns={}, fresh_limit=1)
    with search_executor() as executor:
        searcher = Searcher(live, executor)
        queries = [Query(query, 5 + i % 40) for i, query in enumerate(USERS)]
        found = await asyncio.gather(*map(searcher.search, queries))
    for query, hits in zip(queries, found, strict=True):
        expected_scores, expected_rows = index.search(query.vector[None], query.k)
        assert hits.rows.tolist() == expected_rows[0].tolist()
        np.testing.assert_allclose(hits.scores, expected_scores[0], rtol=1e-5)


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
