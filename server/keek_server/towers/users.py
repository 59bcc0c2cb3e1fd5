"""User vectors for concurrent requests: one Triton call for all that wait."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from keek_server.batching import Batcher
from keek_server.breaker import Breaker
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import USER_TOWER
from keek_server.towers.features import Float32Array, Int32Array, Tensors, user_features
from keek_server.towers.kept import KeptVectors

_MAX_WAITING: Final = 4096
_DEADLINE_S: Final = 1.0
_BACKGROUND_ROWS: Final = 16
"""Of one call that no feed waits for: feeds that come meanwhile wait until Triton is done with it."""
_BACKGROUND_DEADLINE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class UserInputs:
    """What the user tower reads of one user, newest last."""

    user_id: str
    vectors: Float32Array
    """float32 [length, DIMENSION], of the same release."""
    kinds: Int32Array
    """int32 [length], InteractionKind."""
    ages_s: Float32Array
    """float32 [length], seconds."""


def user_batch(users: Sequence[UserInputs]) -> Tensors:
    """The user tower's input tensors for several users."""
    return user_features(
        [user.user_id for user in users],
        [user.vectors for user in users],
        [user.kinds for user in users],
        [user.ages_s for user in users],
    )


async def background_vectors(towers: TowerClient, version: int, users: Sequence[UserInputs]) -> Float32Array:
    """The vectors of many users, in calls so small that they keep no feed waiting.

    Args:
        towers: Asked for the vectors.
        version: Of the user tower.
        users: n users.

    Returns:
        float32 [n, DIMENSION].

    Raises:
        UnavailableError: Triton is gone, late or refuses, or its answer does not fit.
    """
    vectors = np.empty((len(users), *USER_TOWER.output.shape), np.float32)
    for start in range(0, len(users), _BACKGROUND_ROWS):
        batch = users[start : start + _BACKGROUND_ROWS]
        vectors[start : start + len(batch)] = await towers.vectors(
            USER_TOWER, version, user_batch(batch), deadline_s=_BACKGROUND_DEADLINE_S
        )
    return vectors


class UserVectors:
    """Asks one version of the user tower."""

    def __init__(
        self, towers: TowerClient, version: int, *, deadline_s: float = _DEADLINE_S, kept_limit: int = 0
    ) -> None:
        """
        Args:
            towers: Asked for the vectors.
            version: Of the user tower.
            deadline_s: For one call, which may be for many users.
            kept_limit: See `KeptVectors`.
        """
        self.kept = KeptVectors(kept_limit)
        self._towers = towers
        self._version = version
        self._deadline_s = deadline_s
        # Of this version alone: where a new one fails, the others are asked as ever.
        name = f"Triton, {USER_TOWER.model} version {version},"
        self._breaker = Breaker(name, "triton", deadline_s=deadline_s)
        self._batcher: Batcher[UserInputs, Float32Array] = Batcher(
            self._run, max_weight=USER_TOWER.max_batch_size, max_waiting=_MAX_WAITING
        )

    async def vector(self, inputs: UserInputs) -> Float32Array:
        """The vector of one user: float32 [DIMENSION].

        Raises:
            UnavailableError: When Triton does not answer, its answer does not fit, or too many wait.
        """
        self._breaker.check(lambda: self._batcher.submit(inputs))
        return await self._batcher.submit(inputs)

    def retire(self) -> None:
        """Its release serves no more: nobody finds out any longer whether it answers."""
        self._breaker.retire()

    async def _run(self, batch: list[UserInputs]) -> Sequence[Float32Array]:
        with self._breaker.asking():
            vectors = await self._towers.vectors(
                USER_TOWER, self._version, user_batch(batch), deadline_s=self._deadline_s
            )
        return list(vectors)
