"""A device in the place of a GPU: it has a GPU's limits, and fails when it is told to."""

import math
import threading
import weakref

import faiss

from keek_server.retrieval.index import FaissIndex, Rows, Scores, Vectors

MOST = 2048


class FakeDevice:
    """Copies lie in this machine's memory. A row takes as many bytes as is said."""

    def __init__(self, *_: object, capacity: float = math.inf, row_bytes: int = 1) -> None:
        self.capacity = capacity
        self.row_bytes = row_bytes
        self.used = self.most_used = self.copies = self.searches = 0
        self.threads: set[int] = set()
        """Those that searched copies, other than the one that made each."""
        self.copy_error: Exception | None = None
        """Raised by the next copy."""
        self.search_error: Exception | None = None
        """Raised by the next search."""
        self.spoils = False
        """Whether copies find something else."""
        self.copying, self.go = threading.Event(), threading.Event()
        """Set when a copy is about to be made, and what it waits for."""
        self.searching, self.answer = threading.Event(), threading.Event()
        """The same of a search."""
        self.go.set()
        self.answer.set()

    def bytes_of(self, index: FaissIndex) -> int:
        return len(index) * self.row_bytes

    def copy(self, index: FaissIndex) -> "FakeCopy":
        self.copying.set()
        assert self.go.wait(10)
        if (error := self.copy_error) is not None:
            self.copy_error = None
            raise error
        if self.used + self.bytes_of(index) > self.capacity:
            raise RuntimeError("cudaMalloc error out of memory [2]")
        self.used += self.bytes_of(index)
        self.most_used = max(self.most_used, self.used)
        self.copies += 1
        copy = FakeCopy(self, index.copied(faiss.clone_index))
        weakref.finalize(copy, self._freed, self.bytes_of(index))
        return copy

    def _freed(self, count: int) -> None:
        self.used -= count


class FakeCopy:
    """A copy that lies on a `FakeDevice`."""

    def __init__(self, device: FakeDevice, index: FaissIndex) -> None:
        self._device = device
        self._index = index
        self._maker = threading.get_ident()
        self._busy = threading.Lock()

    def takes(self, k: int) -> bool:
        return self._index.width(k) <= MOST and self._index.report.effort(k) <= MOST

    def find(self, queries: Vectors, k: int) -> tuple[Scores, Rows]:
        assert self.takes(k)
        assert self._busy.acquire(blocking=False), "two threads search a copy at once"
        try:
            if threading.get_ident() != self._maker:
                self._count()
            scores, rows = self._index.find(queries, k)
            return (scores, rows[::-1]) if self._device.spoils else (scores, rows)
        finally:
            self._busy.release()

    def _count(self) -> None:
        device = self._device
        device.searches += 1
        device.threads.add(threading.get_ident())
        device.searching.set()
        assert device.answer.wait(10)
        if (error := device.search_error) is not None:
            device.search_error = None
            raise error
