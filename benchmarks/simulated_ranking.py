"""Users whose taste is known, whose feeds are candidates of a user tower that knows it in part: what a ranker
can learn from their log, and what it then earns."""

import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from keek_server.experiments.logs import FloatArray, Int64Array
from keek_server.feed.mixing import QuotaSelector
from keek_server.feed.parameters import FeedParameters
from keek_server.feed.types import Candidate, FeedSource, Selection
from keek_server.towers.contract import DIMENSION
from keek_server.towers.features import Float32Array
from keek_server.towers.ranking import Candidates, RankedPage, ranking_features
from keek_training.ranker.pages import Shown

_PAGE: Final = 10
_PROPOSED: Final = 30
_NEAR: Final = 120
"""Videos that a page's candidates are the best of, by the dot product."""
_OWNERS: Final = 300
_HISTORY: Final = 10
_POSITION: Final = 0.9
"""What a slot earns of the one above it, whatever it shows."""
_DAY_US: Final = 86400 * 10**6
_NOW_US: Final = 100 * _DAY_US


@dataclass(frozen=True, slots=True)
class Visits:
    """n pages to be served."""

    users: Int64Array
    """[n]"""
    proposed: Int64Array
    """[n, proposed]: videos, the nearest first."""


@dataclass(frozen=True, slots=True)
class World:
    """Videos and users. What a user likes is what the vectors say, and more: new and popular videos, and some
    directions of taste that the dot product weighs too little."""

    videos: Candidates
    user_vectors: Float32Array
    """float32 [users, DIMENSION]: of the user tower."""
    histories: Int64Array
    """[users, history]: videos."""
    tastes: FloatArray
    """[users, DIMENSION]: what a user really weighs the elements of a video's vector by."""

    @classmethod
    def draw(cls, rng: np.random.Generator, user_count: int, video_count: int) -> "World":
        """Vectors of about the length of one."""
        vectors = rng.normal(scale=DIMENSION**-0.5, size=(video_count, DIMENSION)).astype(np.float32)
        shares = rng.pareto(1.5, video_count)
        videos = Candidates(
            vectors,
            rng.integers(1, _OWNERS + 1, video_count).astype(np.uint64),
            rng.uniform(5, 120, video_count).astype(np.float32),
            _NOW_US - rng.integers(0, 30 * _DAY_US, video_count),
            (shares / shares.sum()).astype(np.float32),
        )
        histories = rng.integers(0, video_count, (user_count, _HISTORY))
        users = vectors[histories].sum(axis=1)
        users /= np.linalg.norm(users, axis=1, keepdims=True)
        emphasis = np.ones(DIMENSION)
        emphasis[: DIMENSION // 4] = 3.0
        return cls(videos, users, histories, users * emphasis)

    def visits(self, rng: np.random.Generator, count: int) -> Visits:
        """Pages of users as they come."""
        users = rng.integers(0, len(self.user_vectors), count)
        near = rng.integers(0, len(self.videos.vectors), (count, _NEAR))
        scores = np.einsum("nkd,nd->nk", self.videos.vectors[near], self.user_vectors[users])
        order = np.argsort(-scores, axis=1)[:, :_PROPOSED]
        return Visits(users, np.take_along_axis(near, order, 1))

    def likes(self, visits: Visits) -> FloatArray:
        """[n, proposed]: the probability of a like in the first slot."""
        videos = visits.proposed
        affinity = np.einsum("nkd,nd->nk", self.videos.vectors[videos], self.tastes[visits.users])
        days = (_NOW_US - self.videos.create_times_us[videos]) / _DAY_US
        popular = np.log(1.0 + 1e4 * self.videos.popularity[videos])
        logits = -2.0 + 2.5 * affinity - 0.08 * days + 0.5 * popular
        chances: FloatArray = 1.0 / (1.0 + np.exp(-logits))
        return chances

    def page(self, visits: Visits, number: int) -> RankedPage:
        """All candidates of a page, as the ranker reads them."""
        return self._read(int(visits.users[number]), visits.proposed[number])

    def scores(self, visits: Visits) -> FloatArray:
        """[n, proposed]: the dot products."""
        found: FloatArray = np.einsum(
            "nkd,nd->nk", self.videos.vectors[visits.proposed], self.user_vectors[visits.users]
        ).astype(np.float64)
        return found

    def log(self, rng: np.random.Generator, visits: Visits, video_exploration: float) -> list[Shown]:
        """Pages in the order of the dot products, some videos drawn by chance, and what was liked: those
        pages of which something was."""
        likes, scores = self.likes(visits), self.scores(visits)
        shown = []
        for number in range(len(visits.users)):
            rows = [int(item.video_id) for item in _served(scores[number], video_exploration).items]
            earned = rng.random(len(rows)) < likes[number, rows] * _POSITION ** np.arange(len(rows))
            if earned.any():
                page = self._read(int(visits.users[number]), visits.proposed[number, rows])
                shown.append(Shown(page, earned.astype(np.float64), np.arange(len(rows)), number))
        return shown

    def earned(self, visits: Visits, scores: FloatArray) -> float:
        """The truth: likes a page in the order of some scores, [n, proposed], without chance."""
        order = np.argsort(-scores, axis=1, kind="stable")[:, :_PAGE]
        likes = np.take_along_axis(self.likes(visits), order, 1)
        return float((likes * _POSITION ** np.arange(_PAGE)).sum(axis=1).mean())

    def _read(self, user: int, rows: Int64Array) -> RankedPage:
        videos, before = self.videos, self.histories[user]
        own = Candidates(
            videos.vectors[rows],
            videos.owners[rows],
            videos.durations_s[rows],
            videos.create_times_us[rows],
            videos.popularity[rows],
        )
        vector = self.user_vectors[user]
        features = ranking_features(vector, own, videos.vectors[before], videos.owners[before], _NOW_US)
        return RankedPage(vector, own.vectors, features)


def _served(scores: FloatArray, video_exploration: float) -> Selection:
    """A page of personalised videos alone, as the server's mix makes it."""
    given = [
        Candidate(str(row), FeedSource.PERSONALISED, float(scores[row]))
        for row in np.argsort(-scores).tolist()
    ]
    context: Any = SimpleNamespace(
        query=SimpleNamespace(page_size=_PAGE, served=(), allowed=None),
        failed=frozenset(),
        seed=random.getrandbits(64),
        parameters=FeedParameters(personalised_share=1.0, video_exploration=video_exploration),
    )
    return QuotaSelector().select(context, given)
