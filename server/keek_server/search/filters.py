"""Conditions on the videos that a search may find."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keek_server.retrieval.fresh import Columns
from keek_server.retrieval.ids import hash_id
from keek_server.retrieval.index import Mask
from keek_server.towers.features import pad_tags


@dataclass(frozen=True, slots=True)
class VideoFilter:
    """All of those that are set must hold."""

    tags: Sequence[str] = ()
    """At least one of them."""
    owner_id: str = ""
    min_duration_s: float = 0.0
    """0 sets no bound; a video of unknown duration meets neither, as the next."""
    max_duration_s: float = 0.0
    created_after_us: int = 0

    @property
    def is_set(self) -> bool:
        """Whether it asks for anything."""
        return self != VideoFilter()

    def mask(self, columns: Columns) -> Mask:
        """Which of n videos meet it: bool [n], from their VIDEO_COLUMNS."""
        chosen = np.ones(len(columns["owners"]), np.bool_)
        if self.owner_id:
            chosen &= columns["owners"] == np.uint64(hash_id(self.owner_id))
        if self.tags:
            wanted = pad_tags([[tag] for tag in self.tags])[:, 0]
            chosen &= np.isin(columns["tags"], wanted).any(axis=1)
        durations_s = columns["durations_s"]
        if self.min_duration_s:
            chosen &= durations_s >= self.min_duration_s
        if self.max_duration_s:
            chosen &= (durations_s <= self.max_duration_s) & (durations_s > 0)
        if self.created_after_us:
            chosen &= columns["create_times_us"] >= self.created_after_us
        return chosen
