"""Small indexes of random rows, and the users that ask them."""

import numpy as np

from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.index import FaissIndex, Vectors
from keek_server.retrieval.kinds import MainKind

ROWS = 400


def vectors(count: int, seed: int) -> Vectors:
    return np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)


USERS = vectors(20, 0)


def built(seed: int, count: int = ROWS, kind: MainKind = "ivf_flat") -> FaissIndex:
    return build_index(vectors(count, seed), USERS, IndexOptions(0, 1.0, kind=kind))[0]
