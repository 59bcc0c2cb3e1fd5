"""A user's history as the user tower reads it."""

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final, Protocol

import numpy as np

from keek_server.interactions.history import History, HistoryEntry
from keek_server.retrieval.index import Mask, Vectors
from keek_server.towers.features import Float32Array
from keek_server.towers.users import UserInputs, UserVectors

AGE_STEP: Final = 0.2
"""Of the logarithm of 1 s and an age, which is what the towers read."""


class VideoVectors(Protocol):
    """The vectors of a release's videos."""

    def vectors_of(self, ids: Sequence[str]) -> tuple[Mask, Vectors]:
        """Which of n ids are known, bool [n], and the vectors of those, float32 [known, DIMENSION]."""
        ...


def history_inputs(
    videos: VideoVectors, user_id: str, history: Sequence[HistoryEntry], now_us: int
) -> UserInputs:
    """The tower's inputs for one user, from the part of the history that the release knows.

    Args:
        videos: Of the release whose user tower is asked.
        user_id: The user.
        history: At most the release's history_length interactions, newest last.
        now_us: The moment that ages are counted to.
    """
    entries = list(history)
    known, vectors = videos.vectors_of([entry.video_id for entry in entries])
    kinds = np.fromiter((entry.kind for entry in entries), np.int32, count=len(entries))
    times_us = np.fromiter((entry.event_time_us for entry in entries), np.int64, count=len(entries))
    ages_s = (np.maximum(now_us - times_us, 0) / 1e6).astype(np.float32)
    return UserInputs(user_id, vectors, kinds[known], ages_s[known])


def counted_to_us(history: Sequence[HistoryEntry], now_us: int) -> int:
    """The moment that a feed counts ages to: the latest until now at which the newest interaction, the last,
    was a whole number of AGE_STEP old.

    So it stands still for 0.2 s just after an interaction, for two seconds after ten, for 13 minutes after
    an hour: for so long a vector stays the same, kept or computed anew. Whatever is ahead of the clock is no
    age old.
    """
    if not history:
        return now_us
    newest_us = history[-1].event_time_us
    steps = math.floor(math.log1p(max(0, now_us - newest_us) / 1e6) / AGE_STEP)
    return newest_us + int(math.expm1(steps * AGE_STEP) * 1e6)


def served_inputs(
    videos: VideoVectors, user_id: str, history: Sequence[HistoryEntry], now_us: int
) -> UserInputs:
    """The tower's inputs for one user as a feed at this time has them; see `history_inputs`."""
    return history_inputs(videos, user_id, history, counted_to_us(history, now_us))


class LivingVectors(VideoVectors, Protocol):
    """The same, and what of them has changed."""

    @property
    def change_count(self) -> int:
        """Grows with every vector that is put or removed."""
        ...

    def changed_since(self, count: int) -> AbstractSet[str] | None:
        """The ids that have changed since; None when they are too many to know."""
        ...


def kept_vector(
    users: UserVectors, videos: LivingVectors, user_id: str, history: History, now_us: int
) -> Float32Array | None:
    """The vector of one user that is kept, where it still holds; see `user_vector`."""
    change_count = videos.change_count
    kept = users.kept.find(user_id, history.digest(), counted_to_us(history, now_us))
    if kept is None or not _are_as_before(videos, kept.change_count, history):
        return None
    kept.change_count = change_count
    return kept.vector


async def user_vector(
    users: UserVectors, videos: LivingVectors, user_id: str, history: History, now_us: int
) -> Float32Array | None:
    """The vector of one user, float32 [DIMENSION]: one that is kept, where it still holds, or else Triton's.

    Args:
        users: The release's user tower, and the vectors that are kept of it.
        videos: Of the same release.
        user_id: The user.
        history: At most the release's history_length interactions, and at least one.
        now_us: The present.

    Returns:
        The same object as long as the vector is kept. None when the release knows none of the videos of
        the history.

    Raises:
        UnavailableError, OverloadedError: See `UserVectors.vector`.
    """
    kept = kept_vector(users, videos, user_id, history, now_us)
    if kept is not None:
        return kept
    change_count = videos.change_count
    moment_us = counted_to_us(history, now_us)
    inputs = history_inputs(videos, user_id, history, moment_us)
    if len(inputs.kinds) == 0:
        return None
    vector = await users.vector(inputs)
    return users.kept.keep(user_id, history.digest(), moment_us, vector, change_count=change_count)


def _are_as_before(videos: LivingVectors, change_count: int, history: History) -> bool:
    """Whether the vectors of a history's videos are the same as when there were so many changes."""
    if change_count == videos.change_count:
        return True
    changed = videos.changed_since(change_count)
    return changed is not None and changed.isdisjoint(entry.video_id for entry in history)
