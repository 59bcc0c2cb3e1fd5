"""Building the main index: its kind by size, memory and what is asked for, its effort by measured recall."""

import time
from dataclasses import dataclass, replace
from typing import Final

from keek_server.retrieval.engines import choose, fill
from keek_server.retrieval.index import FaissIndex, IndexReport, Vectors
from keek_server.retrieval.kinds import MainKind
from keek_server.retrieval.tuning import tune
from keek_server.settings import Settings

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """What is asked of an index."""

    exact_below: int
    """Corpora smaller than this get exact search."""
    recall_target: float
    """Mean recall@100 against exact search."""
    memory_mib: int | None = None
    """What the index may take; None for any."""
    kind: MainKind | None = None
    """None: chosen."""

    @classmethod
    def of(cls, settings: Settings) -> "IndexOptions":
        """What the settings ask of an index that is a file, as those beside one in Milvus are."""
        kind = settings.index_kind
        return cls(
            settings.index_exact_below,
            settings.index_recall_target,
            settings.index_memory_mib,
            None if kind == "milvus" else kind,
        )


def kind_of(count: int, dimension: int, options: IndexOptions) -> MainKind:
    """The kind that `build_index` builds over `count` vectors."""
    memory_bytes = None if options.memory_mib is None else options.memory_mib * _MIB
    return options.kind or choose(
        count, dimension, exact_below=options.exact_below, memory_bytes=memory_bytes
    )


def build_index(vectors: Vectors, queries: Vectors, options: IndexOptions) -> tuple[FaissIndex, IndexReport]:
    """Builds the index over a corpus, and measures it.

    Args:
        vectors: float32 [n, dimension], the video vectors by row.
        queries: float32 [m, dimension], user vectors; recall is measured on the first `tuning.QUERIES`.
        options: What is asked of it.
    """
    started = time.perf_counter()
    count, dimension = vectors.shape
    kind = kind_of(count, dimension, options)
    filled = fill(kind, vectors)
    report = IndexReport(
        kind=kind,
        videos=count,
        nlist=0 if filled.centroids is None else len(filled.centroids),
        nprobe=0,
        recall_at_100=1.0,
        recall_queries=len(queries),
        build_s=0.0,
    )
    report = tune(filled, vectors, queries, report, options.recall_target)
    report = replace(report, build_s=time.perf_counter() - started)
    return FaissIndex(filled.index, report, vectors), report
