"""Vectors of users, kept while they are still true."""

from collections import OrderedDict
from dataclasses import dataclass

from keek_server.towers.features import Float32Array


@dataclass(slots=True)
class KeptVector:
    """One user's vector, and what it was computed from."""

    vector: Float32Array
    """float32 [DIMENSION]."""
    digest: bytes
    """Of the history."""
    counted_to_us: int
    """The moment that ages were counted to."""
    change_count: int
    """Of the videos whose vectors stand in the history."""


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

    def find(self, user_id: str, digest: bytes, counted_to_us: int) -> KeptVector | None:
        """The vector of a user with this history, of these ages."""
        kept = self._kept.get(user_id)
        if kept is None or kept.digest != digest or kept.counted_to_us != counted_to_us:
            return None
        return kept

    def keep(
        self, user_id: str, digest: bytes, counted_to_us: int, vector: Float32Array, *, change_count: int
    ) -> Float32Array:
        """Keeps a vector; gives what is kept.

        Args:
            user_id: Whose it is.
            digest: Of the history that it was computed from.
            counted_to_us: The moment that ages were counted to.
            vector: float32 [DIMENSION].
            change_count: Of the videos, from before their vectors were read.
        """
        if not self._limit:
            return vector
        self._kept.pop(user_id, None)
        # A copy: what it is a row of may be a whole batch.
        vector = vector.copy()
        self._kept[user_id] = KeptVector(vector, digest, counted_to_us, change_count)
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)
        return vector
