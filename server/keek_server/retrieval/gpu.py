"""A GPU that holds copies of indexes: which of them, in what order, and the thread that searches them."""

import asyncio
import contextlib
import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

import numpy as np

from keek_server import metrics
from keek_server.retrieval.device import BROKEN, Copy, Device, agreed, lacks_memory
from keek_server.retrieval.index import FaissIndex, Mask, Rows, Scores, Vectors
from keek_server.retrieval.searcher import search_executor

logger = logging.getLogger(__name__)

_SEARCH_S: Final = 5.0
"""A search of milliseconds that takes so long never ends."""
_FREE_S: Final = 30.0
_BRING_S: Final = 60.0
"""The longest that a release waits for its copy before it serves without."""
_LEAST_AGREED: Final = 0.9


class GpuIndex:
    """An index that a GPU may hold a copy of. What the copy cannot do, or as long as there is none, the index
    in the machine's memory does."""

    def __init__(self, own: FaissIndex, gpu: "Gpu") -> None:
        self.own = own
        """In the machine's memory: mapped, so that it takes none as long as nothing searches it."""
        self.is_copied = False
        self._gpu = gpu
        self._copy: Copy | None = None

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Scores, Rows]:
        """See `Index.search`."""
        k = min(k, len(self.own))
        # A mask would have to be copied for each search.
        asked = self.is_copied and k > 0 and allowed is None
        found = self._search_copy(queries, k) if asked else None
        metrics.index_searches.labels("cpu" if found is None else "gpu").inc()
        return found or self.own.search(queries, k, allowed)

    def _search_copy(self, queries: Vectors, k: int) -> tuple[Scores, Rows] | None:
        """None where there is no copy, or it cannot find so many."""
        finite = np.asarray(np.isfinite(queries).all(axis=1))
        found = self._gpu.find(self, np.where(finite[:, None], queries, np.float32(0)), k)
        if found is None:
            return None
        scores, rows = found
        scores[~finite], rows[~finite] = -np.inf, -1
        # The chosen lists did not offer enough.
        for place in np.flatnonzero(finite & (rows[:, -1] < 0)):
            scores[place], rows[place] = self.own.search(queries[place : place + 1], k)
        return scores, rows

    # Both are the GPU's alone. No other thread may hold a reference to the copy: it would be freed there, and
    # later than is thought.

    def hold(self, copy: Copy | None) -> None:
        """Has it search a copy from now on, or none."""
        self._copy = copy
        self.is_copied = copy is not None

    def find(self, queries: Vectors, k: int) -> tuple[Scores, Rows] | None:
        """What the copy finds; None where there is none, or it cannot find so many."""
        return self._copy.find(queries, k) if self._copy is not None and self._copy.takes(k) else None


class Gpu:
    """One device. One thread searches what lies on it, and frees it; another one copies to it meanwhile.

    Copies never take more together than they may: one that does not fit beside what serves is made when what
    it replaces serves no more and is freed; until then its index is searched in the machine's memory.
    """

    def __init__(self, device: Device, memory_bytes: float = math.inf) -> None:
        """
        Args:
            device: Where copies lie.
            memory_bytes: What they may take together; the device's own limit always holds.
        """
        self._device = device
        self._memory_bytes = memory_bytes
        self._owner, self._copier = search_executor(), search_executor()
        self._held: dict[GpuIndex, int] = {}
        """What each takes that is there. The copying thread's alone."""
        self._wanted: Sequence[GpuIndex] = ()
        self._is_broken = False

    def index(self, own: FaissIndex) -> GpuIndex:
        """An index without a copy yet."""
        return GpuIndex(own, self)

    def find(self, index: GpuIndex, queries: Vectors, k: int) -> tuple[Scores, Rows] | None:
        """What its copy finds, searched by the owning thread; None where that cannot be had."""
        if self._is_broken:
            return None
        future = self._owner.submit(index.find, queries, k)
        try:
            return future.result(_SEARCH_S)
        except TimeoutError:
            metrics.gpu_failures.labels("search").inc()
            self._give_up(f"did not answer within {_SEARCH_S:g} s")
        except BROKEN as error:
            metrics.gpu_failures.labels("search").inc()
            if not lacks_memory(error):
                self._give_up(f"failed: {error}")
        return None

    async def bring(self, index: GpuIndex, serving: Sequence[GpuIndex], others: Sequence[GpuIndex]) -> None:
        """Copies an index that is about to serve, where it fits beside those that do.

        Where it does not fit, or that fails, it has no copy when this returns.

        Args:
            index: Serves soon.
            serving: Serve now, and keep their copies.
            others: Are open, too, and make room; the last one first.
        """
        job = asyncio.wrap_future(self._copier.submit(self._bring, index, tuple(serving), tuple(others)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BRING_S):
                await job

    def arrange(self, order: Sequence[GpuIndex]) -> None:
        """Has those that come first copied, as many as fit, and all others freed. Returns at once.

        Args:
            order: All that are open, what serves most first.
        """
        self._wanted = tuple(order)
        self._copier.submit(self._arrange, self._wanted).add_done_callback(_told)

    def close(self) -> None:
        """Waits for what runs, and frees all. Searches go on in the machine's memory."""
        self._copier.shutdown(cancel_futures=True)
        for index in list(self._held):
            self._free(index)
        self._owner.shutdown(wait=not self._is_broken, cancel_futures=True)

    # -- in the copying thread ------------------------------------------------------------------------

    def _bring(self, index: GpuIndex, serving: Sequence[GpuIndex], others: Sequence[GpuIndex]) -> None:
        known = {index, *serving, *others}
        # Of releases that were to serve, and then did not.
        for other in [other for other in self._held if other not in known]:
            self._free(other)
        kept = sum(self._held.get(other, 0) for other in serving)
        needed = self._device.bytes_of(index.own)
        if kept + needed > self._memory_bytes:
            logger.info("an index of about %d MiB has no room on the GPU beside what serves", needed >> 20)
            return
        room = [other for other in others if other in self._held and other not in serving]
        while index not in self._held and not self._load(index) and room:
            self._free(room.pop())

    def _arrange(self, order: Sequence[GpuIndex]) -> None:
        if order is not self._wanted:
            return
        fitting = self._fitting(order)
        for other in [other for other in self._held if other not in fitting]:
            self._free(other)
        for place, index in enumerate(fitting):
            behind = [other for other in fitting[place + 1 :] if other in self._held]
            # Each swap brings its own order, and its own turn.
            while order is self._wanted and index not in self._held and not self._load(index):
                if not behind:
                    return
                self._free(behind.pop())

    def _fitting(self, order: Sequence[GpuIndex]) -> list[GpuIndex]:
        fitting, taken = [], 0
        for index in order:
            needed = self._device.bytes_of(index.own)
            if taken + needed <= self._memory_bytes:
                fitting.append(index)
                taken += needed
            else:
                logger.info("an index of about %d MiB is searched without the GPU, for room", needed >> 20)
        return fitting

    def _load(self, index: GpuIndex) -> bool:
        """Copies it. False where that takes more memory than is left, as is known or found out."""
        needed = self._device.bytes_of(index.own)
        if self._is_broken:
            return True
        if sum(self._held.values()) + needed > self._memory_bytes:
            return False
        try:
            copy = self._device.copy(index.own)
            share = agreed(copy, index.own)
        except BROKEN as error:
            metrics.gpu_failures.labels("copy").inc()
            logger.warning("an index of about %d MiB was not copied to the GPU: %s", needed >> 20, error)
            return not lacks_memory(error)
        if share < _LEAST_AGREED:
            metrics.gpu_failures.labels("copy").inc()
            logger.error("a copy on the GPU finds only %.3f of what its index does: not used", share)
            return True
        index.hold(copy)
        self._held[index] = needed
        metrics.gpu_bytes.set(sum(self._held.values()))
        return True

    def _free(self, index: GpuIndex) -> None:
        """Returns when nothing of it is left: searches that came before have ended."""
        if self._is_broken:
            # Freeing on a device that fails ends the process.
            return
        index.is_copied = False
        try:
            self._owner.submit(index.hold, None).result(_FREE_S)
        except TimeoutError:
            self._give_up(f"did not free memory within {_FREE_S:g} s")
            return
        del self._held[index]
        metrics.gpu_bytes.set(sum(self._held.values()))

    def _give_up(self, reason: str) -> None:
        if not self._is_broken:
            self._is_broken = True
            logger.error("the GPU %s: not used any more until the next start", reason)


def _told(job: Future[None]) -> None:
    if not job.cancelled() and (error := job.exception()) is not None:
        logger.error("the GPU's memory was not arranged", exc_info=error)
