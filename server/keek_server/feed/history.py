"""A user's history as the user tower reads it."""

from collections.abc import Sequence

import numpy as np

from keek_server.interactions.projection import HistoryEntry
from keek_server.releases.release import Corpus
from keek_server.towers.users import UserInputs


def history_inputs(corpus: Corpus, user_id: str, history: Sequence[HistoryEntry], now_us: int) -> UserInputs:
    """The tower's inputs for one user, from the part of the history that the release knows.

    Args:
        corpus: Of the release whose user tower is asked: gives the videos' vectors.
        user_id: The user.
        history: At most the release's history_length interactions, newest last.
        now_us: The moment that ages are counted to.
    """
    rows = corpus.ids.rows_of([entry.video_id for entry in history])
    known = rows >= 0
    kinds = np.fromiter((entry.kind for entry in history), np.int32, count=len(history))
    times_us = np.fromiter((entry.event_time_us for entry in history), np.int64, count=len(history))
    ages_s = (np.maximum(now_us - times_us, 0) / 1e6).astype(np.float32)
    return UserInputs(user_id, np.asarray(corpus.vectors[rows[known]]), kinds[known], ages_s[known])
