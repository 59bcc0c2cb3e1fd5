"""Kinds of index built anew over the same vectors, and measured beside each other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.index import RECALL_AT, FaissIndex, IndexReport, Vectors
from keek_server.retrieval.kinds import MainKind
from keek_server.retrieval.measure import Measured, Rung, compare, ladder

_MIB: Final = 1 << 20
_ERRORS: Final = 2.0
"""So many standard errors below its target, a recall may still be what was asked for."""


@dataclass(frozen=True, slots=True)
class BuiltKind:
    """An index in a file, mapped as the server maps it."""

    report: IndexReport
    mib: float
    """Of the file."""
    rungs: list[Rung]
    """For the first RECALL_AT rows, or all where there are fewer."""


@dataclass(frozen=True, slots=True)
class MeasuredKind:
    """One kind, with what it does at each effort."""

    built: BuiltKind
    curve: list[Measured]
    """Beside `built.rungs`."""

    @property
    def tuned(self) -> Measured:
        """At the effort that it was tuned to."""
        return self.curve[self._place]

    @property
    def effort(self) -> int:
        """That effort."""
        return self.built.rungs[self._place].effort

    @property
    def _place(self) -> int:
        return [rung.is_tuned for rung in self.built.rungs].index(True)

    def reaches(self, target: float) -> bool:
        """Whether its recall is the target's, as far as so many queries can tell."""
        return self.tuned.recall + _ERRORS * self.tuned.recall_error >= target

    def fits(self, memory_mib: int | None) -> bool:
        """Whether its file takes no more than `memory_mib`; None for any."""
        return memory_mib is None or self.built.mib <= memory_mib


def build_kinds(
    kinds: Sequence[MainKind],
    vectors: Vectors,
    queries: Vectors,
    options: IndexOptions,
    folder: Path,
    progress: Callable[[int, int], None],
) -> list[BuiltKind]:
    """Builds each kind, with all cores.

    Args:
        kinds: What to build.
        vectors: float32 [n, dimension], n > 0.
        queries: float32 [m, dimension], to tune with.
        options: What is asked of each; its kind is not read.
        folder: Gets the files.
        progress: Told how many kinds of how many are done.
    """
    built = []
    for place, kind in enumerate(kinds):
        progress(place, len(kinds))
        path = folder / f"{kind}.faiss"
        index, report = build_index(vectors, queries, replace(options, kind=kind))
        index.save(path)
        rungs = ladder(FaissIndex.open(path, report, vectors), report, min(RECALL_AT, len(vectors)))
        built.append(BuiltKind(report, path.stat().st_size / _MIB, rungs))
    return built


def compare_kinds(
    built: Sequence[BuiltKind],
    vectors: Vectors,
    queries: Vectors,
    *,
    rounds: int,
    progress: Callable[[int, int], None],
) -> tuple[list[MeasuredKind], float]:
    """Measures all kinds in the same turns, see `measure.compare`; also gives exact search's milliseconds."""
    rungs = [rung for kind in built for rung in kind.rungs]
    k = min(RECALL_AT, len(vectors))
    comparison = compare(rungs, vectors, queries, k, rounds=rounds, progress=progress)
    left = iter(comparison.measured)
    return [MeasuredKind(kind, [next(left) for _ in kind.rungs]) for kind in built], comparison.exact_p50_ms


def fastest(
    measured: Sequence[MeasuredKind], target: float, memory_mib: int | None = None
) -> MeasuredKind | None:
    """Of those that fit and reach the target, the one with the least median latency; None of none."""
    good = [kind for kind in measured if kind.fits(memory_mib) and kind.reaches(target)]
    return min(good, key=lambda kind: kind.tuned.p50_ms, default=None)
