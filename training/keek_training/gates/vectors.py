"""Norms and spread of vectors."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keek_server.releases.manifest import GateResult
from keek_server.retrieval.index import Vectors
from keek_server.settings import Settings
from keek_training.gates.results import at_least, at_most, not_measurable

_CHUNK = 65_536
FEWEST = 10
"""Of fewer vectors, spread says nothing."""


@dataclass(frozen=True, slots=True)
class Moments:
    """What a set of n vectors is like."""

    norms: npt.NDArray[np.float32]
    """float32 [n]: L2; NaN or infinite where a vector is."""
    spread: float
    """Root mean square distance from the mean, over the root mean square norm; 0 when all are the same,
    or all are zero."""

    @property
    def scale(self) -> float:
        """Root mean square norm, at least 1: what differences of elements are measured by."""
        return (
            max(1.0, float(np.sqrt(np.mean(self.norms.astype(np.float64) ** 2)))) if len(self.norms) else 1.0
        )

    @classmethod
    def of(cls, vectors: Vectors) -> "Moments":
        """
        Args:
            vectors: float32 [n, dimension], which may be mapped: it is read in parts.
        """
        count = len(vectors)
        norms = np.empty(count, np.float32)
        mean = np.zeros(vectors.shape[1])
        for start in range(0, count, _CHUNK):
            part = vectors[start : start + _CHUNK].astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                norms[start : start + _CHUNK] = np.linalg.norm(part, axis=1)
                mean += part.sum(axis=0) / count
        if not count or not np.isfinite(norms).all() or not np.any(norms):
            return cls(norms, 0.0)
        parts = (vectors[start : start + _CHUNK] for start in range(0, count, _CHUNK))
        distance = sum(float(((part - mean) ** 2).sum()) for part in parts) / count
        return cls(norms, float(np.sqrt(distance / np.mean(norms.astype(np.float64) ** 2))))


def difference(found: Vectors, expected: Vectors) -> float:
    """The largest difference of any element, over the root mean square norm where that is above 1; NaN when
    the shapes are not the same."""
    if found.shape != expected.shape:
        return float("nan")
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(found - expected))) / Moments.of(expected).scale


def vector_gates(what: str, moments: Moments, settings: Settings) -> list[GateResult]:
    """Norms and spread of n vectors.

    Args:
        what: Whose vectors these are, for people.
        moments: Of the vectors, at least one.
        settings: The bounds.
    """
    count = len(moments.norms)
    bad = int(np.count_nonzero(~np.isfinite(moments.norms)))
    largest = float(moments.norms.max()) if not bad else float("nan")
    text = f"{what}: {bad} of {count} are not finite" if bad else f"{what}: largest L2 norm of {count}"
    zeros = int(np.count_nonzero(moments.norms == 0))
    spread = at_least(
        "spread",
        moments.spread,
        settings.gate_spread,
        f"{what}: distance from their mean over their norm, of {count} vectors, {zeros} of them zero",
    )
    if count < FEWEST:
        spread = not_measurable(spread, f"{what}: {count} are too few to say how they spread")
    return [at_most("max_norm", largest, settings.gate_max_norm, text), spread]
