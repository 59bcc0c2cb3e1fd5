"""How fast and how completely a million videos are searched, beside exact search and the prototype.

The index is that of a release: mapped files, with its fresh part and filters, searched on one thread as the
server does. Exact search is FAISS's own over the same vectors; the prototype's way scores all videos with a
product in NumPy, sorts them and takes the top. All are timed in turns, and medians over the turns count.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import faiss
import numpy as np
from tqdm import tqdm

from benchmarks.private_memory import Peak, mb_per_extra_worker
from benchmarks.retrieval_corpus import Built, make, of_release
from benchmarks.servers import report
from keek_server.errors import SetupError
from keek_server.releases.release import VIDEO_COLUMNS, Corpus
from keek_server.retrieval.build import IndexOptions
from keek_server.retrieval.cuda import open_gpu
from keek_server.retrieval.fresh import VECTORS, Allowed
from keek_server.retrieval.gpu import Gpu, GpuIndex
from keek_server.retrieval.index import FaissIndex, Vectors
from keek_server.retrieval.kinds import MainKind
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.measure import timed
from keek_server.retrieval.query import Query
from keek_server.retrieval.searcher import Searcher, search_executor
from keek_server.retrieval.tuning import exact_rows, recall_at_k
from keek_server.settings import Settings

_K: Final = 100
_ROUNDS: Final = 5
_SEARCHES: Final = 400
"""A round."""
_EXACT: Final = 8
_PROTOTYPE: Final = 3
_TOGETHER: Final = 32
_SELECTIVITIES: Final = (0.01, 0.1, 0.9)
_FILTERED: Final = 50
"""Queries a selectivity."""
_NEW_PER_S: Final = 200
"""Videos that come while the fresh part is measured."""
_NEW_TOGETHER: Final = 20
_FRESH_LIMIT: Final = 100_000


def main() -> None:
    """Prints one JSON object a size, also to benchmarks/results/retrieval-SIZE.json."""
    parser = argparse.ArgumentParser(description="Retrieval beside exact search and the prototype")
    parser.add_argument("--videos", type=int, nargs="+", default=[1_000_000], help="sizes (default: 1000000)")
    parser.add_argument("--release", type=Path, help="folder of a release, instead of made up vectors")
    parser.add_argument("--engine", choices=get_args(MainKind))
    parser.add_argument("--memory-mib", type=int, help="what the index may take (default: any)")
    parser.add_argument("--recall", type=float, default=0.99, help="target (default: 0.99)")
    parser.add_argument("--gpu", type=int, help="GPU that searches, by KEEK_INDEX_GPU_KIND (default: none)")
    arguments = parser.parse_args()
    try:
        with open_gpu(Settings(index_gpu=arguments.gpu)) as gpu:
            _run(arguments, gpu)
    except SetupError as error:
        parser.error(str(error))


def _run(arguments: argparse.Namespace, gpu: Gpu | None) -> None:
    options = IndexOptions(20_000, arguments.recall, arguments.memory_mib, arguments.engine)
    name = "retrieval" if gpu is None else "retrieval-gpu"
    if arguments.release:
        report(f"{name}-release", _measure(of_release(arguments.release), gpu))
        return
    first = None
    for videos in arguments.videos:
        peak = Peak()
        with tempfile.TemporaryDirectory(prefix="keek-retrieval-") as directory, peak.watched():
            result = _measure(make(Path(directory), videos, options), gpu)
        result["peak_private_mb"] = round(peak.mb)
        first = first or result
        if first is not result:
            result["p99_vs_first"] = round(result["p99_ms"] / first["p99_ms"], 2)
        report(f"{name}-{videos}", result)


def _measure(built: Built, gpu: Gpu | None) -> dict[str, Any]:
    faiss.omp_set_num_threads(1)
    corpus = built.corpus()
    live = _live(built, corpus, gpu)
    times = _times(live, corpus.vectors, built.queries)
    exact, prototype = (statistics.median(times[name]) for name in ("exact", "prototype"))
    p50 = statistics.median(times["own"])
    return {
        "videos": len(corpus.ids),
        "engine": built.report.kind,
        "gpu": gpu is not None,
        "recall_at_100": round(_recall(live, corpus.vectors, built.queries), 4),
        "p50_ms": round(p50, 4),
        "p99_ms": round(statistics.median(times["own_p99"]), 4),
        "exact_p50_ms": round(exact, 3),
        "speedup_vs_exact": round(exact / p50, 1),
        "prototype_p50_ms": round(prototype, 2),
        "speedup_vs_prototype": round(prototype / p50, 1),
        "batch32_qps_vs_single": round(asyncio.run(_together(live, built.queries)), 2),
        "open_ms": round(_open_ms(built), 2),
        "build_s": round(built.report.build_s, 1),
        "mb_per_extra_worker": round(mb_per_extra_worker(built), 1),
        "ingest_p99_vs_idle": round(_while_new_ones_come(_live(built, corpus, gpu), built.queries), 2),
        "filtered_recall": _filtered(live, corpus, built.queries),
        "nprobe": built.report.nprobe,
        "efforts": built.report.efforts,
        "rerank": built.report.rerank,
    }


def _live(built: Built, corpus: Corpus, gpu: Gpu | None) -> LiveIndex:
    index = built.index(corpus)
    return LiveIndex(
        {VECTORS: index if gpu is None else _copied(index, gpu)},
        corpus.ids,
        corpus.columns,
        fresh_columns=VIDEO_COLUMNS,
        fresh_limit=_FRESH_LIMIT,
    )


def _copied(index: FaissIndex, gpu: Gpu) -> GpuIndex:
    copied = gpu.index(index)
    asyncio.run(gpu.bring(copied, [], []))
    if not copied.is_copied:
        raise SetupError("the GPU did not take the index: see the log above")
    return copied


def _times(live: LiveIndex, vectors: Vectors, queries: Vectors) -> dict[str, list[float]]:
    """Milliseconds: of each round the median, and of our own also the 99th percentile."""
    found: dict[str, list[float]] = {"own": [], "own_p99": [], "exact": [], "prototype": []}

    own = _searching(live)

    def exact(query: Vectors) -> None:
        exact_rows(vectors, query[None], _K)

    def prototype(query: Vectors) -> None:
        scores = vectors @ query
        np.argsort(-scores)[:_K]

    for search in (own, exact, prototype):
        search(queries[0])
    for turn in tqdm(range(_ROUNDS), desc="searching", file=sys.stderr):
        part = np.roll(queries, -turn * _SEARCHES, axis=0)
        took = timed(own, part[:_SEARCHES])
        found["own"].append(float(np.median(took)))
        found["own_p99"].append(float(np.percentile(took, 99)))
        found["exact"].append(float(np.median(timed(exact, part[:_EXACT]))))
        found["prototype"].append(float(np.median(timed(prototype, part[:_PROTOTYPE]))))
    return found


def _searching(live: LiveIndex) -> Callable[[Vectors], None]:
    """One search, its result left aside."""

    def search(query: Vectors) -> None:
        live.search([Query(query, _K)])

    return search


def _recall(live: LiveIndex, vectors: Vectors, queries: Vectors) -> float:
    exact = exact_rows(vectors, queries, _K)
    found = [live.search([Query(query, _K)])[0].rows for query in queries]
    return recall_at_k(np.array(found), exact)


def _filtered(live: LiveIndex, corpus: Corpus, queries: Vectors) -> dict[str, dict[str, float]]:
    """By the share of videos that a filter lets through: recall, and milliseconds a search."""
    found = {}
    for share in tqdm(_SELECTIVITIES, desc="filtering", file=sys.stderr):
        durations_s = corpus.columns["durations_s"]
        bound_s = float(np.quantile(durations_s, share))
        rows = np.flatnonzero(durations_s < bound_s)
        k = min(_K, len(rows))
        exact = exact_rows(corpus.vectors[rows], queries[:_FILTERED], k)
        allowed, own = _shorter_than(bound_s), []
        took = []
        for query in queries[:_FILTERED]:
            started = time.perf_counter()
            (hits,) = live.search([Query(query, k, allowed)])
            took.append((time.perf_counter() - started) * 1e3)
            own.append(hits.rows)
        found[f"{share:g}"] = {
            "recall": round(recall_at_k(np.array(own), rows[exact]), 4),
            "p50_ms": round(float(np.median(took)), 3),
        }
    return found


def _shorter_than(bound_s: float) -> Allowed:
    return lambda columns: columns["durations_s"] < bound_s


async def _together(live: LiveIndex, queries: Vectors) -> float:
    """Searches a second of 32 callers at once, over those of one; each waits for its answer."""

    async def rate(callers: int, each: int) -> float:
        async def call(own: Sequence[Vectors]) -> None:
            for query in own:
                await searcher.search(Query(query, _K))

        started = time.perf_counter()
        await asyncio.gather(*(call(np.roll(queries, -7 * i, axis=0)[:each]) for i in range(callers)))
        return callers * each / (time.perf_counter() - started)

    ratios = []
    with search_executor() as executor:
        searcher = Searcher(live, executor)
        await rate(_TOGETHER, 5)
        for _ in range(_ROUNDS):
            single = await rate(1, _SEARCHES)
            ratios.append(await rate(_TOGETHER, 50) / single)
    return statistics.median(ratios)


def _open_ms(built: Built) -> float:
    took = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        built.index(built.corpus())
        took.append((time.perf_counter() - started) * 1e3)
    return statistics.median(took)


def _while_new_ones_come(live: LiveIndex, queries: Vectors) -> float:
    """The 99th percentile while videos come and go, over that of the moment before."""
    ratios, own = [], _searching(live)
    for turn in range(_ROUNDS):
        part = np.roll(queries, -turn * _SEARCHES, axis=0)
        idle = np.percentile(timed(own, part), 99)
        over = threading.Event()
        writer = threading.Thread(target=_keep_adding, args=(live, over, turn))
        writer.start()
        busy = np.percentile(timed(own, part), 99)
        over.set()
        writer.join()
        ratios.append(float(busy / idle))
    return statistics.median(ratios)


def _keep_adding(live: LiveIndex, over: threading.Event, turn: int) -> None:
    number = 0
    rng = np.random.default_rng(turn)
    while not over.wait(_NEW_TOGETHER / _NEW_PER_S):
        ids = [f"new-{turn}-{number + i}" for i in range(_NEW_TOGETHER)]
        columns = {
            name: np.zeros((_NEW_TOGETHER, *column.shape), column.dtype)
            for name, column in VIDEO_COLUMNS.items()
        }
        columns[VECTORS] = rng.standard_normal(columns[VECTORS].shape, np.float32)
        live.put(ids, columns)
        live.remove(ids[:2])
        number += _NEW_TOGETHER


if __name__ == "__main__":
    main()
