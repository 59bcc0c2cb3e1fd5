"""How fast a corpus with given clip vectors is embedded through Triton and indexed.

The video tower is exported by training's own code, with tables of the size that training gives
a large catalogue; it is not trained, since that changes no time. The corpus goes through
Triton in slices. Each slice is also run by ONNX Runtime alone, right after, so that whatever
else the machine does falls on both alike.
"""

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import onnxruntime
from tqdm import tqdm

from benchmarks.bulk_corpus import export_towers, make_catalogue, user_queries
from benchmarks.servers import report
from keek_server.embedded import EmbeddedStack
from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.clip_index import build_clip_index
from keek_server.retrieval.index import FaissIndex, Vectors
from keek_server.settings import Settings
from keek_server.towers.client import TowerClient, open_towers
from keek_server.towers.contract import TOWERS, VIDEO_TOWER
from keek_server.towers.features import Tensors, video_features
from keek_training.publishing.catalogue import Catalogue
from keek_training.publishing.embedding import embed
from keek_training.publishing.repository import write_version
from keek_training.runs import Run

_ROOT = Path(__file__).parents[1]
_VERSION = 1
_SLICES = 8
_BATCH = 4096
_CORES = 2
_TOLERANCE = 1e-5


async def measure_bulk(videos: int) -> dict[str, Any]:
    """Embeds and indexes a corpus on two cores, beside ONNX Runtime alone.

    Returns:
        `embed_per_s`: videos a second from columns in memory to vectors in memory: features
        encoded, copied to Triton, computed, copied back. `raw_onnxruntime_per_s`: of the same
        model, with as many threads and rows a run, the inputs encoded beforehand, arranged in
        the faster of two ways. `embed_vs_raw`: the median over the slices. `index_s`: training,
        filling, exact search for 256 users, and tuning to the recall. `total_s`: both. Beside
        it, `clip_index_s`: the index over the given clip vectors, for searches by looks.
        `search_p50_ms`: one query, one thread, at the tuned nprobe.
    """
    with tempfile.TemporaryDirectory(prefix="keek-ingest-") as name:
        directory = Path(name)
        run = await asyncio.to_thread(export_towers, directory, videos)
        catalogue = make_catalogue(videos)
        settings = _settings(directory, run)
        async with EmbeddedStack(settings) as stack, open_towers(stack.settings) as towers:
            vectors, result = await _embed(towers, run, catalogue)
            queries = await user_queries(towers, _VERSION, vectors)
        result |= await asyncio.to_thread(_index, vectors, queries, settings)
        result |= await asyncio.to_thread(_clip_index, catalogue, settings)
    result["total_s"] = round(result["embed_s"] + result["index_s"], 2)
    result["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"videos": videos} | result


def _settings(directory: Path, run: Run) -> Settings:
    repository = directory / "models"
    for tower, model in zip(TOWERS, (run.user_tower, run.video_tower), strict=True):
        (repository / tower.model).mkdir(parents=True)
        config = _ROOT / "model_repository" / tower.model / "config.pbtxt"
        (repository / tower.model / config.name).write_bytes(config.read_bytes())
        write_version(repository, tower, _VERSION, model)
    return Settings(
        data_dir=directory / "data",
        model_repository=repository,
        triton_environment=_ROOT / ".venv-triton",
        triton_url=None,
        redis_url=None,
        startup_timeout_s=60.0,
    )


async def _embed(towers: TowerClient, run: Run, catalogue: Catalogue) -> tuple[Vectors, dict[str, Any]]:
    raw = _Raw(run.video_tower)
    await embed(towers, _VERSION, _sliced(catalogue, slice(0, _BATCH)))  # warms up
    parts, embed_s, raw_s = [], [], []
    count = len(catalogue)
    for i in range(_SLICES):
        part = _sliced(catalogue, slice(count * i // _SLICES, count * (i + 1) // _SLICES))
        started = time.perf_counter()
        parts.append(await embed(towers, _VERSION, part))
        embed_s.append(time.perf_counter() - started)
        expected, seconds = await asyncio.to_thread(raw.run, part)
        raw_s.append(seconds)
        np.testing.assert_allclose(parts[-1], expected, atol=_TOLERANCE)
    return np.concatenate(parts), {
        "embed_per_s": round(count / sum(embed_s)),
        "raw_onnxruntime_per_s": round(count / sum(raw_s)),
        "embed_vs_raw": round(statistics.median(r / e for r, e in zip(raw_s, embed_s, strict=True)), 3),
        "embed_s": round(sum(embed_s), 2),
    }


def _sliced(catalogue: Catalogue, part: slice) -> Catalogue:
    """Some rows of a catalogue."""
    columns = {field.name: getattr(catalogue, field.name) for field in fields(catalogue)}
    return Catalogue(catalogue.seq, **{k: column[part] for k, column in columns.items() if k != "seq"})


class _Raw:
    """ONNX Runtime without anything around it, on as many cores as Triton has."""

    def __init__(self, model: Path) -> None:
        # Threads of its own for each operator, or a thread for each batch.
        self._ways = [(_session(model, _CORES), 1), (_session(model, 1), _CORES)]

    def run(self, catalogue: Catalogue) -> tuple[Vectors, float]:
        """The vectors, and the seconds of the faster way; encoding is not counted."""
        inputs = [
            video_features(
                catalogue.video_ids[start : start + _BATCH],
                catalogue.owner_ids[start : start + _BATCH],
                catalogue.tags[start : start + _BATCH],
                catalogue.durations_s[start : start + _BATCH],
                catalogue.clip_vectors[start : start + _BATCH],
            )
            for start in range(0, len(catalogue), _BATCH)
        ]
        return min((self._run(*way, inputs) for way in self._ways), key=lambda answer: answer[1])

    def _run(
        self, session: onnxruntime.InferenceSession, threads: int, inputs: list[Tensors]
    ) -> tuple[Vectors, float]:
        def run(batch: Tensors) -> Any:
            return session.run([VIDEO_TOWER.output.name], batch)[0]

        with ThreadPoolExecutor(threads) as pool:
            run(inputs[0])
            started = time.perf_counter()
            outputs = list(pool.map(run, inputs))
            seconds = time.perf_counter() - started
        return np.concatenate(outputs), seconds


def _session(model: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Its idle threads would take the other way's time.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _index(vectors: Vectors, queries: Vectors, settings: Settings) -> dict[str, Any]:
    with tqdm(total=1, desc="building the index") as progress:
        index, built = build_index(
            vectors,
            queries,
            IndexOptions(exact_below=settings.index_exact_below, recall_target=settings.index_recall_target),
        )
        progress.update()
    return {
        "index_s": round(built.build_s, 2),
        "index_kind": built.kind,
        "nlist": built.nlist,
        "nprobe": built.nprobe,
        "recall_at_100": built.recall_at_100,
        "search_p50_ms": round(1000 * _search_s(index, queries), 3),
    }


def _clip_index(catalogue: Catalogue, settings: Settings) -> dict[str, Any]:
    _, built = build_clip_index(
        catalogue.clip_vectors,
        catalogue.has_clip,
        exact_below=settings.index_exact_below,
        recall_target=settings.index_recall_target,
    )
    return {"clip_index_s": round(built.build_s, 2), "clip_recall_at_100": built.recall_at_100}


def _search_s(index: FaissIndex, queries: Vectors) -> float:
    """Median time of one query on one thread, as the server searches."""
    times = []
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    for query in queries:
        started = time.perf_counter()
        index.search(query[None], 100)
        times.append(time.perf_counter() - started)
    faiss.omp_set_num_threads(before)
    return statistics.median(times)


def main() -> None:
    """Prints one JSON object, and writes it to benchmarks/results/ingest_bulk.json."""
    parser = argparse.ArgumentParser(description="Embedding and indexing a corpus")
    parser.add_argument("--videos", type=int, default=1_000_000, help="size of the corpus (default: 1000000)")
    arguments = parser.parse_args()
    report("ingest_bulk", asyncio.run(measure_bulk(arguments.videos)))


if __name__ == "__main__":
    main()
