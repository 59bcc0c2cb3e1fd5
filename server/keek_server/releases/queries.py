"""Queries that the index of a release is measured with: the vectors of its users."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import faiss
import numpy as np

from keek_server.errors import SetupError
from keek_server.releases.release import USER_INDEX_FILE, Release
from keek_server.retrieval.index import Vectors
from keek_server.retrieval.tuning import QUERIES
from keek_server.towers.contract import DIMENSION

LEAST_USERS: Final = 32
"""What fewer users find says little about an index."""


@dataclass(frozen=True, slots=True)
class Queries:
    """Vectors that ask."""

    vectors: Vectors
    """float32 [m, DIMENSION], m > 0."""
    source: Literal["users", "videos"]
    """Of what they are the vectors."""
    unseen: bool
    """Whether the release's own index was tuned to others."""


def user_vectors(folder: Path) -> Vectors:
    """The vectors of the users in the release in `folder`, the latest first: float32 [m, DIMENSION]; m may
    be 0."""
    path = folder / USER_INDEX_FILE
    if not path.exists():
        return np.empty((0, DIMENSION), np.float32)
    users: Any = faiss.read_index(str(path))
    if isinstance(users, faiss.IndexIVF):
        users.make_direct_map()
    return np.asarray(users.reconstruct_n(0, users.ntotal), np.float32)


def queries_of(release: Release, users: Vectors, count: int) -> Queries:
    """What a release's own index is measured with: users that it was not tuned to, where there are enough.

    A release that holds too few users is asked by some of its videos.

    Args:
        release: With at least one video.
        users: float32 [m, DIMENSION], `user_vectors` of it.
        count: The most.
    """
    if len(users) < LEAST_USERS:
        videos = release.corpus.vectors
        rows = np.random.default_rng(0).permutation(len(videos))[:count]
        return Queries(np.asarray(videos[np.sort(rows)]), "videos", True)
    # Publishing tunes to the first ones.
    others = users[release.manifest.index.recall_queries :]
    unseen = len(others) >= LEAST_USERS
    return Queries((others if unseen else users)[:count], "users", unseen)


def halves(users: Vectors, count: int) -> tuple[Vectors, Vectors]:
    """Users to tune indexes with, and others to measure them with.

    Args:
        users: float32 [m, DIMENSION].
        count: The most to measure with.

    Raises:
        SetupError: When they are too few.
    """
    if len(users) < 2 * LEAST_USERS:
        raise SetupError(
            f"the release holds {len(users)} users, and {2 * LEAST_USERS} are needed: one half to tune with,"
            " the other to measure with; import more interactions, and publish again"
        )
    # Every other one: the latest are in both halves.
    return users[::2][:QUERIES], users[1::2][:count]
