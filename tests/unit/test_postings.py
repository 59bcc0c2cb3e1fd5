"""Rows by value: what is looked up is what a scan of the column finds, before and after save and load."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from keek_server.releases.release import POSTED, VIDEO_COLUMNS, Corpus
from keek_server.retrieval.fresh import VECTORS, Columns
from keek_server.retrieval.ids import IdTable, hash_all, hash_id
from keek_server.retrieval.index import FaissIndex, IndexReport, Mask
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.postings import Postings
from keek_server.retrieval.query import Excluded, Query
from keek_server.towers.features import MAX_TAGS, pad_tags
from keek_server.videos.filters import VideoFilter

COUNT = 3000
RNG = np.random.default_rng(1)


def some_columns() -> Columns:
    columns = {name: np.zeros((COUNT, *column.shape), column.dtype) for name, column in VIDEO_COLUMNS.items()}
    columns[VECTORS] = RNG.normal(size=columns[VECTORS].shape).astype(np.float32)
    columns["owners"] = hash_all([f"o{i % 500}" if i % 7 else "" for i in range(COUNT)])
    tags = pad_tags([[f"t{number}" for number in RNG.integers(0, 900, i % 4)] for i in range(COUNT)])
    columns["tags"] = np.pad(tags, ((0, 0), (0, MAX_TAGS - tags.shape[1])))
    return columns


COLUMNS = some_columns()


@pytest.fixture(params=["built", "reopened"])
def postings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Postings]:
    built = {name: Postings.build(COLUMNS[name]) for name in POSTED}
    if request.param == "built":
        return built
    reopened = {}
    for name, own in built.items():
        own.save(tmp_path, name)
        opened = Postings.open(tmp_path, name)
        assert opened is not None
        reopened[name] = opened
    return reopened


def scanned(column: npt.NDArray[np.generic], values: list[int]) -> list[int]:
    found = np.isin(column, np.array(values, column.dtype)).reshape(len(column), -1).any(axis=1)
    return np.flatnonzero(found).tolist()


def test_what_is_looked_up_is_what_a_scan_finds(postings: dict[str, Postings]) -> None:
    owners = [hash_id(f"o{i}") for i in (3, 77, 499)]
    assert postings["owners"].rows_with(owners).tolist() == scanned(COLUMNS["owners"], owners)
    tags = pad_tags([["t5"], ["t899"], ["none has this"]])[:, 0].tolist()
    rows = postings["tags"].rows_with(tags)
    assert rows.tolist() == scanned(COLUMNS["tags"], tags)
    assert rows.dtype == np.int64
    assert postings["owners"].rows_with([hash_id("nobody")]).tolist() == []
    assert postings["tags"].rows_with([]).tolist() == []


def test_a_column_of_nothing_has_no_postings() -> None:
    for column in (np.zeros(5, np.uint64), np.zeros((5, 3), np.int32), np.empty((0, 3), np.int32)):
        assert Postings.build(column).rows_with([0, 1]).tolist() == []


@pytest.mark.parametrize("filter_", [VideoFilter(tags=["t5", "t6"]), VideoFilter(owner_id="o77")])
def test_a_filter_that_few_meet_is_asked_about_those_alone_and_finds_as_much(
    postings: dict[str, Postings], filter_: VideoFilter
) -> None:
    asked = []

    def allowed(columns: Columns) -> Mask:
        asked.append(len(columns["owners"]))
        return filter_.mask(columns)

    index = FaissIndex.empty(COLUMNS[VECTORS].shape[1])
    index._index.add(COLUMNS[VECTORS])
    exact = FaissIndex(index._index, IndexReport("exact", COUNT, 0, 0, 1.0, 0, 0.0), COLUMNS[VECTORS])
    live = LiveIndex(
        {VECTORS: exact},
        IdTable.build([f"v{i}" for i in range(COUNT)]),
        COLUMNS,
        fresh_columns=VIDEO_COLUMNS,
        fresh_limit=10,
        postings=postings,
    )
    live.remove([f"v{np.flatnonzero(filter_.mask(COLUMNS))[0]}"])
    meeting = np.flatnonzero(filter_.mask(COLUMNS))[1:]
    seen = f"v{meeting[0]}"
    query = RNG.normal(size=COLUMNS[VECTORS].shape[1]).astype(np.float32)
    (hits,) = live.search(
        [Query(query, COUNT, allowed, excluded=Excluded(frozenset([seen])), among=filter_.rows)]
    )
    expected = meeting[1:][np.argsort(-(COLUMNS[VECTORS][meeting[1:]] @ query), kind="stable")]
    assert hits.rows.tolist() == expected.tolist()
    # The first time is for the share of those that meet it.
    assert max(asked[1:]) < COUNT / 10
    asked.clear()
    live.search([Query(query, COUNT, allowed)])
    assert max(asked[1:]) == COUNT


def test_a_release_of_before_has_none_and_is_searched_without(tmp_path: Path) -> None:
    corpus = Corpus.build([f"v{i}" for i in range(COUNT)], COLUMNS, np.ones(COUNT, np.int64))
    corpus.save(tmp_path)
    assert set(Corpus.open(tmp_path).postings) == set(POSTED)
    for path in [*tmp_path.glob("*_values.npy"), *tmp_path.glob("owners_rows.npy")]:
        path.unlink()
    assert Corpus.open(tmp_path).postings == {}
    assert VideoFilter(owner_id="o3").rows({}) is None
    assert VideoFilter(min_duration_s=3).rows(corpus.postings) is None
