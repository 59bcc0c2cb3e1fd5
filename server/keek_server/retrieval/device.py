"""What an index needs of a device that can hold a copy of it."""

from typing import Final, Protocol

import numpy as np

from keek_server.retrieval.index import FaissIndex, Rows, Scores, Vectors

BROKEN: Final = (RuntimeError, MemoryError)
"""What FAISS raises, whatever goes wrong on a device."""

_LACKING: Final = ("out of memory", "bad_alloc")
_PROBES: Final = 32
_PROBED: Final = 10


class Copy(Protocol):
    """An index as it lies on a device: for one thread at a time. It goes with the last reference to it."""

    def takes(self, k: int) -> bool:
        """Whether it can find so many rows."""
        ...

    def find(self, queries: Vectors, k: int) -> tuple[Scores, Rows]:
        """See `FaissIndex.find`; for a k that it takes."""
        ...


class Device(Protocol):
    """Where copies lie."""

    def bytes_of(self, index: FaissIndex) -> int:
        """What a copy takes, about."""
        ...

    def copy(self, index: FaissIndex) -> Copy:
        """Copies it, beside searches in another thread.

        Raises:
            RuntimeError, MemoryError: When it fails; nothing stays of it.
        """
        ...


def lacks_memory(error: BaseException) -> bool:
    """Whether the next search may go well: a smaller one, say."""
    return isinstance(error, MemoryError) or any(said in str(error) for said in _LACKING)


def agreed(copy: Copy, own: FaissIndex) -> float:
    """Share of an index's best rows that a copy finds, for some of its own vectors; 1 where it has none."""
    if own.vectors is None or not len(own):
        return 1.0
    places = np.linspace(0, len(own) - 1, _PROBES).astype(np.int64)
    queries, k = np.ascontiguousarray(own.vectors[places], np.float32), min(_PROBED, len(own))
    found, expected = copy.find(queries, k)[1], own.search(queries, k)[1]
    shares = [len(np.intersect1d(a, b)) / k for a, b in zip(found, expected, strict=True)]
    return float(np.mean(shares))
