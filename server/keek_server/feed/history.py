"""A user's history as the user tower reads it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from keek_server.interactions.projection import HistoryEntry
from keek_server.retrieval.index import Mask, Vectors
from keek_server.towers.users import UserInputs


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
    known, vectors = videos.vectors_of([entry.video_id for entry in history])
    kinds = np.fromiter((entry.kind for entry in history), np.int32, count=len(history))
    times_us = np.fromiter((entry.event_time_us for entry in history), np.int64, count=len(history))
    ages_s = (np.maximum(now_us - times_us, 0) / 1e6).astype(np.float32)
    return UserInputs(user_id, vectors, kinds[known], ages_s[known])
