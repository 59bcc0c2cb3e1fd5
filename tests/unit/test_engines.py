"""The contract of every kind of main index, compared with brute force, before and after save and load."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, get_args

import faiss
import numpy as np
import pytest
from fake_gpu import FakeDevice
from milvus import connected, lite_path

from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.cuda import CudaDevice
from keek_server.retrieval.device import Device
from keek_server.retrieval.engines import bytes_per_vector, choose, fill
from keek_server.retrieval.fresh import VECTORS
from keek_server.retrieval.gpu import Gpu
from keek_server.retrieval.ids import IdTable
from keek_server.retrieval.index import FaissIndex, Index, IndexReport, Mask, Rows, Vectors
from keek_server.retrieval.kinds import GpuKind, MainKind
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.milvus import MilvusIndex
from keek_server.retrieval.query import Query
from keek_server.retrieval.searcher import Searcher, search_executor
from keek_server.retrieval.tuning import recall_at_k, recalls_at_k, tune
from keek_training.publishing.milvus import build_collection

KINDS: tuple[MainKind, ...] = get_args(MainKind)
COUNT = 6000
TARGET = 0.99


def clustered(count: int, seed: int) -> Vectors:
    """Near 50 centres, of lengths that differ, as video towers give them."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(50, 64))
    near = centres[rng.integers(0, 50, count)] + 0.5 * rng.normal(size=(count, 64))
    return (near * rng.uniform(0.8, 1.2, (count, 1))).astype(np.float32)


VIDEOS, USERS = clustered(COUNT, 1), clustered(200, 2)
SCORES = USERS @ VIDEOS.T


class Built(NamedTuple):
    index: Index
    report: IndexReport
    milvus: Path | None = None
    """The file of the Milvus Lite that has it."""


FORMS = ("built", "reopened", "fake gpu", "gpu", "gpu, cagra")
MILVUS = ("milvus", "milvus, exact")
CASES = [(kind, form) for kind in KINDS for form in FORMS]
CASES += [(kind, form) for kind in MILVUS for form in ("built", "reopened")]


@pytest.fixture(scope="module")
def build() -> Iterator[Callable[[str], Built]]:
    """Builds each kind once."""
    with ExitStack() as stack:

        @cache
        def build(kind: str) -> Built:
            return stack.enter_context(building(kind))

        yield build


@contextmanager
def building(kind: str) -> Iterator[Built]:
    if kind in MILVUS:
        options = IndexOptions(COUNT + 1 if kind.endswith("exact") else 0, TARGET)
        with lite_path() as path, connected(path) as milvus:
            index, report = build_collection(milvus, "r-1", VIDEOS, USERS, options)
            assert (report.kind, report.nlist > 0) == ("milvus", kind == "milvus")
            yield Built(index, report, path)
        return
    (known,) = (each for each in KINDS if each == kind)
    built = Built(*build_index(VIDEOS, USERS, IndexOptions(0, TARGET, kind=known)))
    assert built.report.kind == kind
    yield built


@pytest.fixture(params=[*KINDS, *MILVUS])
def built(request: pytest.FixtureRequest, build: Callable[[str], Built]) -> Built:
    return build(request.param)


@pytest.fixture(params=CASES, ids=", ".join)
def index(request: pytest.FixtureRequest, build: Callable[[str], Built], tmp_path: Path) -> Iterator[Index]:
    kind, form = request.param
    built = build(kind)
    if form == "built":
        yield built.index
    elif built.milvus is not None:
        with connected(built.milvus) as milvus:
            yield MilvusIndex.open(milvus, "r-1", built.report, VIDEOS)
    else:
        assert isinstance(built.index, FaissIndex)
        built.index.save(tmp_path / "index.faiss")
        opened = FaissIndex.open(tmp_path / "index.faiss", built.report, VIDEOS)
        yield from [opened] if form == "reopened" else copied(opened, form)


def copied(opened: FaissIndex, form: str) -> Iterator[Index]:
    """With a copy on a device."""
    gpu = Gpu(FakeDevice() if form == "fake gpu" else real_device(form))
    index = gpu.index(opened)
    gpu.arrange([index])
    try:
        gpu._copier.submit(int).result(60)
        assert index.is_copied
        yield index
    finally:
        gpu.close()


def real_device(name: str) -> Device:
    """The first GPU. The test is skipped where there is none."""
    kind: GpuKind = "cagra" if name.endswith("cagra") else "copy"
    if not faiss.get_num_gpus():
        pytest.skip("FAISS finds no GPU: what runs on one is NOT tested here")
    if kind == "cagra" and not hasattr(faiss, "GpuIndexCagra"):
        pytest.skip("FAISS is built without cuVS: CAGRA is NOT tested here")
    return CudaDevice(0, kind)


def exact(k: int, allowed: Mask | None = None) -> Rows:
    scores = SCORES if allowed is None else np.where(allowed, SCORES, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("k", [1, 20, 100, 700, 1500])
def test_it_finds_what_was_promised_however_deep(index: Index, k: int) -> None:
    # Of so many rows each, fewer queries are enough.
    count = len(USERS) if k <= 100 else 50
    scores, rows = index.search(USERS[:count], k)
    assert rows.shape == (count, k)
    assert recall_at_k(rows, exact(k)[:count]) >= TARGET - (0.01 if k < 100 else 0.003)
    # Also where the index holds codes: what is shown is scored by the whole vectors, or nearly.
    np.testing.assert_allclose(scores, np.take_along_axis(SCORES[:count], rows, 1), rtol=2e-3, atol=2e-3)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 1.0])
def test_a_filter_loses_nothing(index: Index, share: float) -> None:
    allowed = np.random.default_rng(3).random(COUNT) < share
    count = min(100, int(allowed.sum()))
    scores, rows = index.search(USERS, 100, allowed)
    assert rows.shape == scores.shape == (len(USERS), count)
    assert allowed[rows].all()
    if count:
        assert recall_at_k(rows, exact(count, allowed)) >= TARGET


def test_rows_that_may_be_found_and_lie_far_away_are_found(index: Index) -> None:
    allowed = np.zeros(COUNT, np.bool_)
    allowed[np.argsort(SCORES[0])[:50]] = True
    _, rows = index.search(USERS[:1], 100, allowed)
    assert sorted(rows[0].tolist()) == np.flatnonzero(allowed).tolist()


def test_more_than_there_are_gives_what_there_is(index: Index) -> None:
    scores, rows = index.search(USERS[:2], 2 * COUNT)
    assert np.sort(rows, axis=1).tolist() == [list(range(COUNT))] * 2
    assert np.isfinite(scores).all()
    assert index.search(USERS[:2], 0)[1].shape == (2, 0)


def test_a_query_that_is_not_finite_finds_nothing_and_spoils_no_other(index: Index) -> None:
    queries = USERS[:3].copy()
    queries[1, 7] = np.nan
    scores, rows = index.search(queries, 100)
    expected = index.search(USERS[:3], 100)[1]
    assert rows[[0, 2]].tolist() == expected[[0, 2]].tolist()
    assert ((rows[1] < 0) | ~np.isfinite(scores[1])).all()


def test_searched_together_queries_find_what_they_find_alone(index: Index) -> None:
    together_scores, together = index.search(USERS[:64], 50)
    for place, query in enumerate(USERS[:64]):
        scores, rows = index.search(query[None], 50)
        np.testing.assert_allclose(together_scores[place], scores[0], rtol=1e-5)
        if isinstance(index, FaissIndex):
            assert together[place].tolist() == rows[0].tolist()
        # A GPU may round otherwise where it multiplies larger matrices.
        assert recall_at_k(together[place : place + 1], rows) >= 0.98


async def test_batched_searches_give_what_single_ones_give(index: Index) -> None:
    ids = IdTable.build([f"v{i}" for i in range(len(VIDEOS))])
    live = LiveIndex({VECTORS: index}, ids, {}, fresh_columns={}, fresh_limit=1)
    with search_executor() as executor:
        searcher = Searcher(live, executor)
        queries = [Query(query, 5 + i % 40) for i, query in enumerate(USERS)]
        found = await asyncio.gather(*map(searcher.search, queries))
    for query, hits in zip(queries, found, strict=True):
        # A batch is as deep as its deepest query: each finds no less than alone.
        own = live.search([query])[0]
        assert len(hits) == query.k
        assert hits.scores.sum() >= own.scores.sum() - 1e-3


def test_the_measured_recall_is_the_true_one(built: Built) -> None:
    found = built.index.search(USERS, 100)[1]
    assert built.report.recall_at_100 == pytest.approx(recall_at_k(found, exact(100)), abs=1e-3)
    assert built.report.recall_at_100 >= TARGET


@pytest.mark.parametrize("count", [1, 15, 400, 30_000])
def test_a_corpus_of_any_size_reaches_the_recall_with_no_more_lists_than_needed(count: int) -> None:
    videos, users = clustered(count, 3), clustered(64, 4)
    index, report = build_index(videos, users, IndexOptions(0, 0.95, kind="ivf_flat"))
    best = np.argsort(-(users @ videos.T), axis=1, kind="stable")[:, :100]
    assert recall_at_k(index.search(users, 100)[1], best) >= 0.95
    assert 1 <= report.nprobe <= report.nlist <= count
    if report.nprobe > 1:
        _, fewer = index._search(users, best.shape[1], report.nprobe - 1)
        recalls = recalls_at_k(fewer, best)
        assert recalls.mean() - 1.645 * recalls.std() / np.sqrt(len(users)) < 0.95


def test_users_that_it_was_not_tuned_with_find_as_much() -> None:
    """Without taking off the sampling error, one of these samples promises more than others find."""
    videos = np.random.default_rng(3).normal(size=(20_000, 16)).astype(np.float32)
    filled = fill("ivf_flat", videos)
    assert filled.centroids is not None
    untuned = IndexReport("ivf_flat", len(videos), len(filled.centroids), 0, 1.0, 0, 0.0)
    for seed in (12, 13):
        users = np.random.default_rng(seed).normal(size=(1000, 16)).astype(np.float32)
        report = tune(filled, videos, users[:32], untuned, 0.95)
        assert report.recall_queries == 32
        others = users[32:]
        best = np.argsort(-(others @ videos.T), axis=1, kind="stable")[:, :100]
        found = FaissIndex(filled.index, report).search(others, 100)[1]
        assert recall_at_k(found, best) >= 0.95


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "hnsw"])
@pytest.mark.parametrize("count", [1, 3, 300])
def test_every_kind_holds_a_corpus_of_any_size(kind: MainKind, count: int) -> None:
    videos = clustered(count, 3)
    index, _ = build_index(videos, USERS, IndexOptions(0, 1.0, kind=kind))
    assert sorted(index.search(USERS[:1], count)[1][0].tolist()) == list(range(count))


def test_deeper_searches_take_more_effort_and_never_more_than_there_is() -> None:
    report = IndexReport("ivf_flat", 10**6, 4000, 20, 0.99, 256, 1.0, efforts=((100, 20), (1000, 80)))
    depths = (1, 100, 101, 1000, 2000, 10**6)
    assert [report.effort(depth) for depth in depths] == [20, 20, 80, 80, 160, 4000]
    # What earlier versions wrote.
    assert IndexReport("ivf_flat", 10**6, 4000, 20, 0.99, 256, 1.0).effort(1000) == 200
    hnsw = IndexReport("hnsw", 10**6, 0, 0, 0.99, 256, 1.0, efforts=((100, 150),))
    assert [hnsw.effort(depth) for depth in (10, 100, 200, 400)] == [150, 150, 300, 600]
    assert IndexReport("exact", 10, 0, 0, 1.0, 1, 0.0).effort(5) == 0


@pytest.mark.parametrize(
    ("count", "memory_bytes", "kind"),
    [
        (19_999, 1, "exact"),
        (1_000_000, None, "ivf_fp16"),
        (1_000_000, 1_000_000 * 136, "ivf_fp16"),
        (1_000_000, 1_000_000 * 136 - 1, "ivf_sq8"),
        (1_000_000, 1_000_000 * 72 - 1, "ivf_pq"),
        (1_000_000, 1, "ivf_pq"),
    ],
)
def test_the_kind_is_the_most_exact_one_that_fits(
    count: int, memory_bytes: int | None, kind: MainKind
) -> None:
    assert choose(count, 64, exact_below=20_000, memory_bytes=memory_bytes) == kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_about_as_large_as_is_said(kind: MainKind, tmp_path: Path) -> None:
    videos = clustered(8000, 3)
    index, _ = build_index(videos, USERS[:8], IndexOptions(0, 0.5, kind=kind))
    index.save(tmp_path / "index.faiss")
    rows = len(videos) * bytes_per_vector(kind, 64)
    assert rows <= (tmp_path / "index.faiss").stat().st_size <= 1.2 * rows + 500_000
