"""The full softmax in half precision: what takes most of a step where the catalogue is the candidates."""

from typing import Any, Final

from keek_training.backend import Tensor, compiled, ops

_HALF: Final = "bfloat16"
_HIGHEST: Final = 60.0
"""exp(60), and the sum of millions of it, is still far from the largest float32; exp(-60) from the least."""


def log_partition(users: Tensor, vectors: Tensor) -> Tensor:
    """The logarithm of each user's sum of exp(score) over the videos, with a gradient of its own.

    Scores, their exponentials and the three matrix products are in bfloat16, sums in float32. Each
    user's highest score is sought only where the lengths of the vectors allow one too high for exp.

    Args:
        users: float32 [n, d].
        vectors: float32 [videos, d].

    Returns:
        float32 [n].
    """

    @ops.custom_gradient  # type: ignore[untyped-decorator]
    def partition(users: Tensor, vectors: Tensor) -> tuple[Tensor, Any]:
        halves = ops.cast(users, _HALF), ops.cast(vectors, _HALF)
        scores = ops.matmul(halves[0], ops.transpose(halves[1]))
        shifts = ops.cond(
            _longest(users) * _longest(vectors) < _HIGHEST,
            lambda: ops.zeros_like(users[:, 0]),
            lambda: ops.cast(ops.max(scores, axis=-1), "float32"),
        )
        powers, sums = _exponentials(scores, shifts)

        def gradient(upstream: Tensor) -> tuple[Tensor, Tensor]:
            shares = ops.expand_dims(upstream / sums, -1)
            to_users = ops.cast(ops.matmul(powers, halves[1]), "float32") * shares
            weighted = ops.cast(users * shares, _HALF)
            to_vectors = ops.matmul(ops.transpose(weighted), powers)
            return to_users, ops.cast(ops.transpose(to_vectors), "float32")

        return ops.log(sums) + shifts, gradient

    logarithms: Tensor = partition(users, vectors)
    return logarithms


def _longest(vectors: Tensor) -> Tensor:
    return ops.sqrt(ops.max(ops.sum(ops.square(vectors), axis=-1)))


@compiled
def _exponentials(scores: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """exp(score - shift) in half precision, and their sums: one pass over the largest tensor of a step."""
    powers = ops.exp(ops.cast(scores, "float32") - ops.expand_dims(shifts, -1))
    return ops.cast(powers, _HALF), ops.sum(powers, axis=-1)
