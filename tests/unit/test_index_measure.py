"""An index measured, and kinds beside each other; nothing here depends on how fast the machine is."""

from pathlib import Path

import faiss
import numpy as np
import pytest

from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.index import FaissIndex, IndexReport, Vectors
from keek_server.retrieval.kinds import MainKind
from keek_server.retrieval.measure import Measured, compare, depths, ladder, one_thread, timed
from keek_server.retrieval.rebuild import BuiltKind, MeasuredKind, build_kinds, compare_kinds, fastest
from keek_server.retrieval.tuning import exact_rows, recall_at_k

COUNT = 3000
TARGET = 0.95


def clustered(count: int, seed: int) -> Vectors:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(40, 16))
    near = centres[rng.integers(0, 40, count)] + 0.5 * rng.normal(size=(count, 16))
    return near.astype(np.float32)


VIDEOS, TUNING, ASKING = clustered(COUNT, 1), clustered(100, 2), clustered(64, 3)


@pytest.fixture(scope="module")
def lists() -> tuple[FaissIndex, IndexReport]:
    return build_index(VIDEOS, TUNING, IndexOptions(0, TARGET, kind="ivf_flat"))


def test_a_ladder_is_of_efforts_around_the_tuned_one(lists: tuple[FaissIndex, IndexReport]) -> None:
    index, report = lists
    rungs = ladder(index, report, 20)
    efforts = [rung.effort for rung in rungs]
    assert efforts == sorted(set(efforts))
    assert [rung.effort for rung in rungs if rung.is_tuned] == [report.nprobe]
    assert efforts[0] <= report.nprobe / 2
    assert efforts[-1] == min(4 * report.nprobe, report.nlist)
    # Each rung searches with its own effort, and the index itself goes on as it was.
    found = [recall_at_k(rung.index.search(ASKING, 20)[1], exact_rows(VIDEOS, ASKING, 20)) for rung in rungs]
    assert found == sorted(found)
    assert found[0] < found[-1]
    tuned = index.search(ASKING, 20)[1]
    np.testing.assert_array_equal(tuned, rungs[efforts.index(report.nprobe)].index.search(ASKING, 20)[1])


@pytest.mark.parametrize(("k", "least"), [(100, 100), (300, 300)])
def test_hnsw_keeps_no_fewer_candidates_than_rows_are_wanted(k: int, least: int) -> None:
    index, report = build_index(VIDEOS, TUNING, IndexOptions(0, TARGET, kind="hnsw"))
    efforts = [rung.effort for rung in ladder(index, report, k)]
    assert efforts[0] >= least
    assert efforts[-1] <= COUNT
    assert report.effort(k) in efforts


def test_an_exact_index_has_one_rung_and_finds_all() -> None:
    index, report = build_index(VIDEOS, TUNING, IndexOptions(COUNT + 1, TARGET))
    (rung,) = rungs = ladder(index, report, 100)
    assert (rung.effort, rung.is_tuned) == (0, True)
    (measured,) = compare(rungs, VIDEOS, ASKING, 100, rounds=1).measured
    assert (measured.recall, measured.recall_error) == (1.0, 0.0)
    assert depths(index, report, VIDEOS, ASKING) == []


def test_the_recall_is_that_of_brute_force_and_times_are_of_every_rung(
    lists: tuple[FaissIndex, IndexReport],
) -> None:
    rungs = ladder(*lists, 20)
    steps: list[tuple[int, int]] = []
    found = compare(
        rungs, VIDEOS, ASKING, 20, rounds=2, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(step, 3 * len(rungs)) for step in range(3 * len(rungs))]
    best = np.argsort(-(ASKING @ VIDEOS.T), axis=1)[:, :20]
    for rung, own in zip(rungs, found.measured, strict=True):
        each = [
            len({*rows} & {*expected}) / 20
            for rows, expected in zip(rung.index.search(ASKING, 20)[1].tolist(), best.tolist(), strict=True)
        ]
        assert own.recall == pytest.approx(np.mean(each))
        assert own.recall_error == pytest.approx(np.std(each) / 8)
        assert 0 < own.p50_ms <= own.p99_ms
        assert own.together > 0
    assert found.exact_p50_ms > 0


def test_every_tuned_depth_is_measured(lists: tuple[FaissIndex, IndexReport]) -> None:
    index, report = lists
    found = depths(index, report, VIDEOS, ASKING)
    assert tuple((own.depth, own.effort) for own in found) == report.efforts
    assert [own.depth for own in found] == [100, 200, 400, 800, 1600]
    assert all(own.recall > TARGET - 0.03 for own in found)


def test_one_thread_searches_and_the_others_come_back() -> None:
    before = faiss.omp_get_max_threads()
    with one_thread():
        assert faiss.omp_get_max_threads() == 1
    assert faiss.omp_get_max_threads() == before


def test_a_search_is_timed_in_milliseconds_once_a_query() -> None:
    asked: list[int] = []
    assert all(took >= 0 for took in timed(asked.append, [3, 1, 2]))
    assert asked == [3, 1, 2]


def test_kinds_are_built_into_files_and_measured_with_other_queries(tmp_path: Path) -> None:
    kinds: list[MainKind] = ["exact", "ivf_fp16", "ivf_sq8"]
    done: list[tuple[int, int]] = []
    built = build_kinds(
        kinds, VIDEOS, TUNING, IndexOptions(0, TARGET), tmp_path, lambda *step: done.append(step)
    )
    assert done == [(0, 3), (1, 3), (2, 3)]
    assert [own.report.kind for own in built] == kinds
    for own in built:
        assert own.mib == (tmp_path / f"{own.report.kind}.faiss").stat().st_size / 2**20
    # Four bytes a value, two, one.
    assert built[0].mib > 1.4 * built[1].mib > 1.4 * 1.2 * built[2].mib

    measured, exact_ms = compare_kinds(built, VIDEOS, ASKING, rounds=1, progress=lambda *_: None)
    assert exact_ms > 0
    assert [own.effort for own in measured] == [0, *(own.report.nprobe for own in built[1:])]
    for own in measured:
        index = next(rung.index for rung in own.built.rungs if rung.is_tuned)
        rows = index.search(ASKING, 100)[1]
        assert own.tuned.recall == pytest.approx(recall_at_k(rows, exact_rows(VIDEOS, ASKING, 100)))
        assert own.tuned.recall > TARGET - 0.03


def measured_kind(
    kind: MainKind, *, mib: float, recall: float, p50_ms: float, error: float = 0.001
) -> MeasuredKind:
    index, report = build_index(VIDEOS[:50], TUNING, IndexOptions(0, TARGET, kind="exact"))
    own = BuiltKind(IndexReport(kind, 50, 0, 0, 1.0, 1, 0.0), mib, ladder(index, report, 10))
    return MeasuredKind(own, [Measured(recall, error, p50_ms, 2 * p50_ms, 1.0)])


def test_the_fastest_of_those_that_fit_and_reach_the_target_is_chosen() -> None:
    flat = measured_kind("ivf_flat", mib=300, recall=0.991, p50_ms=0.5)
    half = measured_kind("ivf_fp16", mib=150, recall=0.9885, p50_ms=0.3)
    codes = measured_kind("ivf_pq", mib=40, recall=0.98, p50_ms=0.2)
    kinds = [flat, half, codes]
    # 0.9885 is 0.99 as far as so many queries can tell.
    assert fastest(kinds, 0.99) is half
    assert fastest(kinds, 0.992) is flat
    assert fastest(kinds, 0.97) is codes
    assert fastest(kinds, 0.97, 39) is None
    assert fastest(kinds, 0.99, 150) is half
    assert fastest(kinds, 0.999) is None
