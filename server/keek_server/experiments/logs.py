"""What an analysis reads: exposures and interactions as arrays, users and videos as codes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keek_server.errors import InvalidArgumentError
from keek_server.interactions.kinds import InteractionKind

BoolArray = npt.NDArray[np.bool_]
Int8Array = npt.NDArray[np.int8]
Int16Array = npt.NDArray[np.int16]
Int64Array = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Exposures:
    """n served feeds with m slots in all; the slots of feed i are `offsets[i]` to `offsets[i + 1]`.

    Codes number users and videos from 0, the same in `Interactions`.
    """

    users: Int64Array
    """[n]: codes."""
    arms: Int16Array
    """[n]: numbers of arms; -1 where the feed belongs to none."""
    times_us: Int64Array
    """[n]: when it was served."""
    offsets: Int64Array
    """[n + 1]: from 0 to m, not falling."""
    firsts: Int64Array
    """[n]: how many slots stood on earlier pages of the session, which the mix counts on from."""
    videos: Int64Array
    """[m]: codes."""
    sources: Int8Array
    """[m]: `FeedSource`, the one that filled the slot."""
    scores: Float32Array
    """[m]"""
    source_propensities: Float32Array
    """[m]: with which probability the slot was given to this source, after all slots before it; NaN where
    that is not known, as when a source ran short and another one filled its slot."""
    video_propensities: Float32Array
    """[m]: with which probability the slot showed this very video, given its source and all that was placed
    before it; 1 where no video was drawn by chance."""

    def __post_init__(self) -> None:
        _same_length(
            "exposures", users=self.users, arms=self.arms, times_us=self.times_us, firsts=self.firsts
        )
        _same_length(
            "exposures",
            videos=self.videos,
            sources=self.sources,
            scores=self.scores,
            source_propensities=self.source_propensities,
            video_propensities=self.video_propensities,
        )
        ends = len(self.offsets) == len(self.users) + 1 and self.offsets[0] == 0
        if not ends or self.offsets[-1] != len(self.videos) or (np.diff(self.offsets) < 0).any():
            raise InvalidArgumentError.of("exposures.offsets", "must rise from 0 to the number of slots")
        for name in ("source_propensities", "video_propensities"):
            own = getattr(self, name)
            if (np.isinf(own) | (own <= 0.0) | (own > 1.0 + 1e-6)).any():
                raise InvalidArgumentError.of(f"exposures.{name}", "must lie in (0, 1], or be NaN")

    def __len__(self) -> int:
        return len(self.users)

    @property
    def feeds(self) -> Int64Array:
        """[m]: the feed of each slot."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def positions(self) -> Int64Array:
        """[m]: the place of each slot in its feed, from 0."""
        return np.arange(len(self.videos)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))

    def only(self, kept: BoolArray) -> "Exposures":
        """The feeds that a mask, bool [n], keeps."""
        slots = np.repeat(kept, np.diff(self.offsets))
        return Exposures(
            users=self.users[kept],
            arms=self.arms[kept],
            times_us=self.times_us[kept],
            offsets=np.concatenate([[0], np.cumsum(np.diff(self.offsets)[kept])]).astype(np.int64),
            firsts=self.firsts[kept],
            videos=self.videos[slots],
            sources=self.sources[slots],
            scores=self.scores[slots],
            source_propensities=self.source_propensities[slots],
            video_propensities=self.video_propensities[slots],
        )


@dataclass(frozen=True, slots=True)
class Interactions:
    """k interactions."""

    users: Int64Array
    """[k]: codes."""
    videos: Int64Array
    """[k]: codes."""
    kinds: Int8Array
    """[k]: `InteractionKind`."""
    times_us: Int64Array
    """[k]: when they happened."""
    watched_s: FloatArray
    """[k]: how long the video was watched, of views and skips; NaN where that is not known."""
    durations_s: FloatArray
    """[k]: of the video; NaN where it is not known. It matters of what was watched for a known time alone."""

    def __post_init__(self) -> None:
        _same_length(
            "interactions",
            users=self.users,
            videos=self.videos,
            kinds=self.kinds,
            times_us=self.times_us,
            watched_s=self.watched_s,
            durations_s=self.durations_s,
        )
        if not np.isin(self.kinds, list(InteractionKind)).all():
            raise InvalidArgumentError.of("interactions.kinds", "must be kinds of interaction")
        if (self.watched_s < 0.0).any() or (self.durations_s <= 0.0).any():
            raise InvalidArgumentError.of("interactions.watched_s", "must not be negative, nor the durations")

    def __len__(self) -> int:
        return len(self.users)


class Pooled(NamedTuple):
    """A personalised video that slots of one feed were drawn among."""

    video: int
    """A code."""
    last: int
    """The last position that it could be drawn for: its own where it was shown; -1 where there was none."""
    is_shown: bool
    """Whether a slot was given to it by such a draw."""


Pool = Sequence[Pooled]
"""Of one feed, best first: each slot was drawn among the first `drawing.VIDEO_POOL` that were left."""


def _same_length(what: str, **arrays: npt.NDArray[Any]) -> None:
    if len({array.shape for array in arrays.values()}) > 1 or any(a.ndim != 1 for a in arrays.values()):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        raise InvalidArgumentError.of(what, f"must have arrays of one dimension and one length: {shapes}")
