"""The main index: immutable, built once for a release, searched by maximum inner product."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import faiss
import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

IndexKind = Literal["exact", "ivf_flat", "exact_fp16", "ivf_sq8"]

RECALL_AT = 100
"""The k of the recall that an index is tuned to."""


class Index(Protocol):
    """Finds the rows whose vectors have the largest dot product with a query."""

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Scores, Rows]:
        """
        Args:
            queries: float32 [n, dimension].
            k: Rows wanted a query.
            allowed: bool [rows], which may be found; all by default.

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
        self._nlist = faiss.extract_index_ivf(index).nlist if nprobe else 0

    @classmethod
    def open(cls, path: Path, report: IndexReport) -> "FaissIndex":
        """Maps an index file: its pages are shared between processes and read when needed."""
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)
        return cls(index, report.nprobe)

    @classmethod
    def empty(cls, dimension: int) -> "FaissIndex":
        """An index that finds nothing."""
        return cls(faiss.IndexFlatIP(dimension), 0)

    def save(self, path: Path) -> None:
        """Writes the index file."""
        faiss.write_index(self._index, str(path))

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Scores, Rows]:
        """See `Index.search`."""
        k = min(k, self._index.ntotal)
        if k == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        nprobe = self._nprobe
        if nprobe and allowed is not None:
            # Where few rows may be found, as many of them lie in as many more lists.
            share = max(1, int(np.count_nonzero(allowed))) / len(allowed)
            nprobe = min(math.ceil(nprobe / share), self._nlist)
        scores, rows = self._index.search(queries, k, params=search_parameters(nprobe, allowed))
        return scores, rows


def search_parameters(nprobe: int, allowed: Mask | None = None) -> Any:
    """Parameters of one call: the index itself stays as it is. None where the index needs none.

    Args:
        nprobe: Lists that are searched; 0 where the index has none.
        allowed: See `Index.search`.
    """
    given: dict[str, Any] = {}
    if nprobe:
        given["nprobe"] = nprobe
    if allowed is not None:
        given["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))  # type: ignore[call-arg, arg-type]
    if not given:
        return None
    return faiss.SearchParametersIVF(**given) if nprobe else faiss.SearchParameters(**given)
