"""Vectors of users, kept while they are still true."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from keek_server.towers.features import Float32Array

AGE_DRIFT: Final = 0.01
"""By this share the newest interaction of a history may have aged since its vector was computed. The
towers read the logarithm of 1 s and the age: it moves by this much at most."""
LEAST_S: Final = 0.1
"""So long a vector holds, however new the newest interaction is: for the pages that one user asks at once."""
MOST_S: Final = 300.0


@dataclass(slots=True)
class KeptVector:
    """One user's vector, and what it was computed from."""

    vector: Float32Array
    """float32 [DIMENSION]."""
    digest: bytes
    """Of the history."""
    change_count: int
    """Of the videos whose vectors stand in the history."""
    until_us: int
    """When the interactions have aged too much."""


class KeptVectors:
    """The vectors of one version of the user tower, those that were computed last."""

    def __init__(self, limit: int) -> None:
        """
        Args:
            limit: Users whose vectors are kept, about 0.6 KiB each; 0 keeps none.
        """
        self._limit = limit
        self._kept: OrderedDict[str, KeptVector] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, user_id: str, digest: bytes, now_us: int) -> KeptVector | None:
        """The vector of a user with this history, as long as it holds."""
        kept = self._kept.get(user_id)
        if kept is None or kept.digest != digest or now_us >= kept.until_us:
            return None
        return kept

    def keep(
        self,
        user_id: str,
        digest: bytes,
        vector: Float32Array,
        *,
        change_count: int,
        computed_us: int,
        newest_us: int,
    ) -> Float32Array:
        """Keeps a vector; gives what is kept.

        Args:
            user_id: Whose it is.
            digest: Of the history that it was computed from.
            vector: float32 [DIMENSION].
            change_count: Of the videos, from before their vectors were read.
            computed_us: The moment that ages were counted to.
            newest_us: Time of the newest interaction.
        """
        if not self._limit:
            return vector
        age_s = max(0, computed_us - newest_us) / 1e6
        holds_s = min(MOST_S, max(LEAST_S, AGE_DRIFT * (1 + age_s)))
        self._kept.pop(user_id, None)
        # A copy: what it is a row of may be a whole batch.
        vector = vector.copy()
        self._kept[user_id] = KeptVector(vector, digest, change_count, computed_us + int(holds_s * 1e6))
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return vector
