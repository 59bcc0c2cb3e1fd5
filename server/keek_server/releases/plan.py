"""The plan: which release serves everyone, and which one is tried beside it. One row of SQL."""

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

_BUCKETS: Final = 10_000
"""Users are told apart to a hundredth of a percent."""


class ReleaseState(IntEnum):
    """What became of a release, numbered as in `keek.v1.ReleaseState`."""

    READY = 1
    REFUSED = 2
    REMOVED = 3


class TrialKind(IntEnum):
    """How a release is tried, numbered as in `keek.v1.TrialKind`."""

    CANARY = 1
    SHADOW = 2


@dataclass(frozen=True, slots=True)
class Trial:
    """A second release beside the active one."""

    release_id: str
    kind: TrialKind
    percent: float
    """0 to 100: of users for a canary, of requests for a shadow."""

    def takes(self, user_id: str) -> bool:
        """Whether a canary gives its feeds to this user: always the same, and still when it grows.

        Other users are taken for another release, so that not always the same ones try what is new.
        """
        digest = hashlib.blake2b(user_id.encode(), digest_size=8, key=self.release_id.encode()[:64]).digest()
        return int.from_bytes(digest) % _BUCKETS < self.percent * _BUCKETS / 100


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be served."""

    seq: int
    """Counts up with every change; 0 is none."""
    release_id: str
    time_us: int
    reason: str = ""
    is_rollback: bool = False
    trial: Trial | None = None
