"""Rows that the tests of the living index and its fresh part share."""

import numpy as np
import numpy.typing as npt

from keek_server.retrieval.fresh import VECTORS, Column

DIMENSION = 8
COLUMNS = {VECTORS: Column(np.float32, (DIMENSION,)), "owners": Column(np.uint64)}

Float32Array = npt.NDArray[np.float32]


def vectors(count: int, seed: int) -> Float32Array:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)


def columns(rows: Float32Array, owner: int = 0) -> dict[str, npt.NDArray[np.generic]]:
    return {VECTORS: rows, "owners": np.full(len(rows), owner, np.uint64)}
