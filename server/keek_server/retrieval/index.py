"""The main index: immutable, built once for a release, searched by maximum inner product."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import faiss
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

IndexKind = Literal["exact", "ivf_flat"]

RECALL_AT = 100
"""The k of the recall that an index is tuned to."""


class Index(Protocol):
    """Finds the rows whose vectors have the largest dot product with a query."""

    def search(self, queries: Vectors, k: int) -> tuple[Scores, Rows]:
        """
        Args:
            queries: float32 [n, dimension].
            k: Rows wanted a query.

        Returns:
            Scores float32 [n, k], descending, and rows int64 [n, k]; where fewer than k
            were found, the rest of a query's rows are -1.
        """
        ...


@dataclass(frozen=True, slots=True)
class IndexReport:
    """How an index was built, and what its recall was measured to be."""

    kind: IndexKind
    videos: int
    nlist: int
    nprobe: int
    recall_at_100: float
    """Against exact search, over `recall_queries` queries."""
    recall_queries: int
    build_s: float

    def as_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


class FaissIndex:
    """A FAISS index. Searches release the GIL and use the caller's thread alone."""

    def __init__(self, index: Any, nprobe: int) -> None:
        self._index = index
        self._nprobe = nprobe

    @classmethod
    def open(cls, path: Path, report: IndexReport) -> "FaissIndex":
        """Maps an index file: its pages are shared between processes and read when needed."""
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
        return cls(index, report.nprobe)

    def save(self, path: Path) -> None:
        """Writes the index file."""
        faiss.write_index(self._index, str(path))

    def search(self, queries: Vectors, k: int) -> tuple[Scores, Rows]:
        """See `Index.search`."""
        k = min(k, self._index.ntotal)
        if k == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        params = ivf_parameters(self._nprobe) if self._nprobe else None
        scores, rows = self._index.search(queries, k, params=params)
        return scores, rows


def ivf_parameters(nprobe: int) -> Any:
    """Search parameters of one call: the index itself stays as it is."""
    parameters = faiss.SearchParametersIVF()
    parameters.nprobe = nprobe
    return parameters
