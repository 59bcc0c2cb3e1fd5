"""What building an index takes in memory, and what one more worker that opens it."""

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import faiss
import numpy as np

from benchmarks.retrieval_corpus import Built
from keek_server.releases.release import INDEX_FILE, Corpus
from keek_server.retrieval.index import FaissIndex, IndexReport

_BEFORE: Final = 2
"""Workers that have the same files open already: what a single one has mapped counts as its own."""
_SAMPLE_S: Final = 0.05


class Peak:
    """The most private memory that this process had, in MB; what it maps from files is not counted."""

    def __init__(self) -> None:
        self.mb = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Looks until the block ends."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_SAMPLE_S):
                self.mb = max(self.mb, _anonymous_mb())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()


def _anonymous_mb() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text("utf-8").splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


def mb_per_extra_worker(built: Built) -> float:
    """Private memory, in MB, that a further worker has after its searches beyond what it had idle."""
    with tempfile.TemporaryDirectory(prefix="keek-worker-") as directory:
        queries = Path(directory) / "queries.npy"
        np.save(queries, built.queries)
        workers = [_Worker(built, queries) for _ in range(_BEFORE + 1)]
        try:
            for worker in workers[:-1]:
                worker.step()
            last = workers[-1]
            idle = last.private_bytes()
            last.step()
            return (last.private_bytes() - idle) / 1e6
        finally:
            for worker in workers:
                worker.stop()


class _Worker:
    """A process that opens the index when it is told to, and asks all queries."""

    def __init__(self, built: Built, queries: Path) -> None:
        arguments = [str(built.folder), json.dumps(built.report.as_dict()), str(queries)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._said()

    def step(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._said()

    def private_bytes(self) -> int:
        rollup = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text("utf-8").splitlines()[1:]
        kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in rollup)}
        return 1024 * (kib["Private_Clean"] + kib["Private_Dirty"])

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _said(self) -> None:
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise RuntimeError(f"a worker ended with code {self._process.wait()}")


def _work(folder: Path, report: IndexReport, queries: Path) -> None:
    vectors = np.load(queries)
    faiss.omp_set_num_threads(1)
    print("idle", flush=True)
    sys.stdin.readline()
    corpus = Corpus.open(folder)
    index = FaissIndex.open(folder / INDEX_FILE, report, corpus.vectors)
    for query in vectors:
        _, rows = index.search(query[None], 100)
        for row in rows[0].tolist():
            corpus.ids.id_of(row)
    print("open", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    _work(Path(sys.argv[1]), IndexReport(**json.loads(sys.argv[2])), Path(sys.argv[3]))
