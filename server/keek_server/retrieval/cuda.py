"""Indexes on a GPU, by a FAISS that is built for it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import faiss
import numpy as np

from keek_server.errors import SetupError
from keek_server.retrieval.device import Copy
from keek_server.retrieval.engines import bytes_per_vector
from keek_server.retrieval.gpu import Gpu
from keek_server.retrieval.index import RECALL_AT, FaissIndex, Rows, Scores, Vectors
from keek_server.retrieval.kinds import GpuKind, IndexKind
from keek_server.retrieval.tuning import recall_at_k
from keek_server.settings import Settings

_faiss: Any = faiss  # most of its classes for GPUs are in no stub, and in no build for CPUs

MOST: Final = 2048
"""Rows, and lists, that FAISS selects on a GPU at most (its GPU_MAX_SELECTION_K)."""
_TEMPORARY: Final = 256 << 20
"""Bytes for what a search takes meanwhile; FAISS would take 1.5 GiB. More is allocated when it is needed."""
_LIST_ROWS: Final = 32
"""Lists lie in blocks of so many rows."""
_LIST_BYTES: Final = 1024
"""Of a list: its codes and its ids are two allocations, each rounded up."""
_CLASSES: Final[dict[IndexKind, str]] = {
    "exact": "GpuIndexFlat",
    "ivf_flat": "GpuIndexIVFFlat",
    "ivf_fp16": "GpuIndexIVFScalarQuantizer",
    "ivf_sq8": "GpuIndexIVFScalarQuantizer",
    "ivf_pq": "GpuIndexIVFPQ",
}

_LINKS: Final = 64
_LINK_BYTES: Final = 4
_BEAMS: Final = (128, 256, 512)
"""What a search in a graph keeps of candidates: at most 512 in one block of threads."""
_BEAM_STEP: Final = 32
_ASKED: Final = 256
_ROUNDED: Final = 0.005
"""Recall that float16 may cost."""


@contextmanager
def open_gpu(settings: Settings) -> Iterator[Gpu | None]:
    """The GPU that the settings name, if they do, while the block runs.

    Raises:
        SetupError: When it is not there.
    """
    if settings.index_gpu is None:
        yield None
        return
    memory_mib = settings.index_gpu_memory_mib
    gpu = Gpu(
        CudaDevice(settings.index_gpu, settings.index_gpu_kind),
        math.inf if memory_mib is None else memory_mib << 20,
    )
    try:
        yield gpu
    finally:
        gpu.close()


class CudaDevice:
    """One GPU."""

    def __init__(self, number: int, kind: GpuKind = "copy") -> None:
        """
        Args:
            number: As CUDA counts, from 0.
            kind: What lies on it.

        Raises:
            SetupError: When it is not there, or FAISS was not built for it.
        """
        if not hasattr(faiss, "StandardGpuResources"):
            raise SetupError(
                "KEEK_INDEX_GPU is set, but FAISS is built without GPU here: install keek[gpu] in an "
                "environment without faiss-cpu (docs/deployment.md)"
            )
        if number >= (count := _faiss.get_num_gpus()):
            raise SetupError(f"KEEK_INDEX_GPU is {number}, but FAISS finds {count} GPUs, counted from 0")
        if kind == "cagra" and not hasattr(faiss, "GpuIndexCagra"):
            raise SetupError(
                "KEEK_INDEX_GPU_KIND is cagra, but FAISS is built without cuVS here: install keek[gpu-cuvs]"
            )
        self._number = number
        self._kind = kind

    def bytes_of(self, index: FaissIndex) -> int:
        """See `Device.bytes_of`."""
        report, dimension = index.report, index.dimension
        if self._kind == "cagra":
            return len(index) * (2 * dimension + _LINK_BYTES * _LINKS) + _TEMPORARY
        if report.kind not in _CLASSES:
            return len(index) * 2 * dimension + _TEMPORARY
        rows = len(index) + report.nlist * _LIST_ROWS
        lists = report.nlist * (4 * dimension + _LIST_BYTES)
        return rows * bytes_per_vector(report.kind, dimension) + lists + _TEMPORARY

    def copy(self, index: FaissIndex) -> Copy:
        """See `Device.copy`."""
        # Of its own: it is made beside searches in others, and FAISS's resources are for one thread.
        resources = _faiss.StandardGpuResources()
        resources.setTempMemory(_TEMPORARY)
        resources.setPinnedMemory(0)
        if self._kind == "cagra":
            return _Graph(index, self._graph_of(index, resources))
        # By its constructor: an index that cannot be copied whole then leaves nothing behind.
        name = _CLASSES.get(index.report.kind)
        if name is not None:
            return _Lists(index.copied(lambda own: self._made(name, resources, own)))
        # Links of HNSW cannot be followed there: all vectors are looked at.
        flat = self._made("GpuIndexFlat", resources, index.dimension, faiss.METRIC_INNER_PRODUCT, fp16=True)
        flat.add(np.ascontiguousarray(_vectors(index)))
        return _Lists(index.copied(lambda _: flat, kind="exact", efforts=()))

    def _made(self, name: str, resources: Any, *arguments: Any, fp16: bool = False) -> Any:
        config = getattr(_faiss, f"{name}Config")()
        config.device = self._number
        config.use_cuvs = False
        if hasattr(config, "indicesOptions"):
            config.indicesOptions = _faiss.INDICES_64_BIT
        if fp16:
            config.useFloat16 = True
        return getattr(_faiss, name)(resources, *arguments, config)

    def _graph_of(self, index: FaissIndex, resources: Any) -> Any:
        config = _faiss.GpuIndexCagraConfig()
        config.device = self._number
        config.graph_degree, config.intermediate_graph_degree = _LINKS, 2 * _LINKS
        graph = _faiss.GpuIndexCagra(resources, index.dimension, faiss.METRIC_INNER_PRODUCT, config)
        graph.train(_vectors(index).astype(np.float16), numeric_type=faiss.Float16)
        return graph


@dataclass(frozen=True, slots=True)
class _Lists:
    """An index as FAISS has it on the CPU, too."""

    index: FaissIndex

    def takes(self, k: int) -> bool:
        return self.index.width(k) <= MOST and self.index.report.effort(k) <= MOST

    def find(self, queries: Vectors, k: int) -> tuple[Scores, Rows]:
        return self.index.find(queries, k)


class _Graph:
    """CAGRA. Its candidates are scored by the whole vectors; how many it keeps is found out at the start."""

    def __init__(self, own: FaissIndex, graph: Any) -> None:
        self._own = own
        self._graph = graph
        rows = np.linspace(0, len(own) - 1, _ASKED).astype(np.int64)
        queries, k = np.ascontiguousarray(_vectors(own)[rows]), min(RECALL_AT, len(own))
        expected = own.search(queries, k)[1]
        for beam in _BEAMS:
            self._beam = beam
            if recall_at_k(self.find(queries, k)[1], expected) >= own.report.recall_at_100 - _ROUNDED:
                break

    def takes(self, k: int) -> bool:
        return self._beam_of(k) <= _BEAMS[-1]

    def find(self, queries: Vectors, k: int) -> tuple[Scores, Rows]:
        parameters = _faiss.SearchParametersCagra()
        parameters.itopk_size = self._beam_of(k)
        _, rows = self._graph.search(
            queries.astype(np.float16), k, params=parameters, numeric_type=faiss.Float16
        )
        return self._own.rescored(queries, rows, k)

    def _beam_of(self, k: int) -> int:
        """In proportion to the depth, in whole steps."""
        return -(-max(self._beam, self._beam * k // RECALL_AT) // _BEAM_STEP) * _BEAM_STEP


def _vectors(index: FaissIndex) -> Vectors:
    assert index.vectors is not None, "a release's index of videos has its vectors"
    return index.vectors
