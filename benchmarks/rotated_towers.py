"""Pairs of towers that say the same in another space: rotated by a random orthogonal matrix.

Within a pair all scores stay what they were, because a dot product does not change when both vectors are
rotated. A user tower of one pair with the videos of another gives scores that mean nothing, so that a feed
which mixes two releases is seen by its scores alone.
"""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.tower_files import (
    USER_OUT,
    VIDEO_OUT,
    TowerFiles,
    Towers,
    add_weight,
    after_output,
    before_input,
    inner,
    node,
)
from keek_server.towers.contract import DIMENSION

Matrix = npt.NDArray[np.float32]

_HISTORY: Final = "history_vectors"
_THERE, _BACK = "rotation", "rotation_back"


def rotation(seed: int, dimension: int = DIMENSION) -> Matrix:
    """A random orthogonal matrix, float32 [dimension, dimension], uniform over all of them.

    The QR decomposition of a Gaussian matrix, with the signs of R's diagonal taken out (Mezzadri, "How to
    generate random matrices from the classical compact groups", 2007).
    """
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(dimension, dimension)))
    return np.asarray(q * np.sign(np.diag(r)), np.float32)


def write_rotated(towers: Towers, seed: int, folder: Path) -> TowerFiles:
    """Writes the pair that a rotation makes of another one.

    Args:
        towers: The original, which was not rotated itself: rotations are no chain.
        seed: Of the matrix Q: a video's vector v becomes v Q, a user's u becomes u Q, and what the user tower
            reads of videos is rotated back first.
        folder: Gets the two files.

    Raises:
        ValueError: When the pair is rotated already.
    """
    q = rotation(seed)
    users, videos = towers.users(), towers.videos()
    there = add_weight(users, _THERE, q)
    back = add_weight(users, _BACK, q.T)
    before_input(users, node("MatMul", [_HISTORY, back], inner(_HISTORY)), _HISTORY)
    after_output(users, node("MatMul", [inner(USER_OUT), there], USER_OUT), USER_OUT)
    there = add_weight(videos, _THERE, q)
    after_output(videos, node("MatMul", [inner(VIDEO_OUT), there], VIDEO_OUT), VIDEO_OUT)
    return towers.write(folder, users=users, videos=videos)
