"""What a release's ranker reads of its videos; training reads the same from here."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final, Self

import numpy as np

from keek_server.interactions.history import HistoryEntry
from keek_server.releases.release import Corpus
from keek_server.retrieval.fresh import VECTORS
from keek_server.retrieval.ids import Rows
from keek_server.retrieval.index import Mask
from keek_server.retrieval.live import LiveIndex
from keek_server.towers.features import Float32Array
from keek_server.towers.ranking import (
    RANKED_HISTORY,
    Candidates,
    RankedPage,
    Ranker,
    ranking_features,
)

_READ: Final = (VECTORS, "owners", "durations_s", "create_times_us")
_READ_OF_HISTORY: Final = (VECTORS, "owners")


@dataclass(frozen=True, slots=True)
class RankedVideos:
    """The videos of a release, as they are now."""

    videos: LiveIndex
    popular: Rows
    """int64 [listed], rising: the rows of the release's popular list."""
    popularity: Float32Array
    """float32 [listed]: share of the interactions, beside them."""

    @classmethod
    def of(cls, corpus: Corpus, videos: LiveIndex) -> Self:
        """
        Args:
            corpus: Of the release.
            videos: The same videos and those that came since.
        """
        order = np.argsort(corpus.popular)
        return cls(videos, np.asarray(corpus.popular[order]), np.asarray(corpus.popularity[order]))

    def page(
        self,
        user_vector: Float32Array,
        video_ids: Sequence[str],
        history: Sequence[HistoryEntry],
        now_us: int,
    ) -> tuple[Mask, RankedPage]:
        """Which of n videos there are, bool [n], and those as the ranker reads them.

        Args:
            user_vector: float32 [DIMENSION], of the release's user tower.
            video_ids: The candidates.
            history: Of the user, newest last; the latest RANKED_HISTORY are read, those that are removed
                left out.
            now_us: The moment that ages are counted to.
        """
        known, columns = self.videos.columns_of(video_ids, _READ)
        latest = [entry.video_id for entry in history[-RANKED_HISTORY:]]
        _, before = self.videos.columns_of(latest, _READ_OF_HISTORY)
        candidates = Candidates(
            columns[VECTORS],
            columns["owners"],
            columns["durations_s"],
            columns["create_times_us"],
            self._popularity_of(list(compress(video_ids, known))),
        )
        features = ranking_features(user_vector, candidates, before[VECTORS], before["owners"], now_us)
        return known, RankedPage(user_vector, candidates.vectors, features)

    def _popularity_of(self, video_ids: Sequence[str]) -> Float32Array:
        if not len(self.popular):
            return np.zeros(len(video_ids), np.float32)
        rows = self.videos.ids.rows_of(video_ids)
        places = np.minimum(np.searchsorted(self.popular, rows), len(self.popular) - 1)
        return np.where(self.popular[places] == rows, self.popularity[places], np.float32(0.0))


@dataclass(frozen=True, slots=True)
class ReleaseRanker:
    """The ranker of a release that is open."""

    model: Ranker
    videos: RankedVideos
