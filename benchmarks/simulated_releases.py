"""Two releases on users whose taste is known, for the benchmark of experiments: feeds that the server's own
mix makes of the one's rankings, some videos drawn by chance, and what the other would really earn."""

import random
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from keek_server.experiments.logs import Exposures, FloatArray, Int64Array, Pool
from keek_server.experiments.reading import pool_of
from keek_server.experiments.release_replay import Choices
from keek_server.feed.mixing import QuotaSelector
from keek_server.feed.parameters import FeedParameters
from keek_server.feed.types import Candidate, FeedSource, Selection

_PAGE: Final = 10
_NEAR: Final = 60
"""Videos that a release may choose from, for one page; those of different pages are different videos."""
_PROPOSED: Final = 30
"""Of them, those that it proposes to the mix, as the server's source does."""
_OWNERS: Final = 25
"""Of the videos near a user: the cap of an owner's videos on a page binds now and then."""
_TRENDING: Final = 6
_POSITION: Final = 0.97
"""What a place further down earns of the one above it."""


@dataclass(frozen=True, slots=True)
class Near:
    """n pages' worth of videos, and how the two releases order them."""

    users: Int64Array
    """[n], rising."""
    likes: FloatArray
    """[n, videos]: the probability of a like in the first slot."""
    owners: Int64Array
    """[n, videos], from 1."""
    logged: FloatArray
    target: FloatArray
    """[n, videos] each: the releases' scores. The target knows the users better, and not wholly."""

    @classmethod
    def draw(cls, rng: np.random.Generator, user_count: int) -> "Near":
        """Some users come often, most once or twice."""
        users = np.repeat(
            np.arange(user_count), 1 + rng.poisson(rng.lognormal(0.0, 1.0, user_count), user_count)
        )
        shape = len(users), _NEAR
        taste = rng.normal(size=shape)
        likes = np.minimum(rng.beta(2.0, 14.0, user_count)[users, None] * np.exp(0.5 * taste), 1.0)
        return cls(
            users,
            likes,
            rng.integers(1, _OWNERS + 1, shape),
            taste + rng.normal(scale=0.8, size=shape),
            taste + rng.normal(scale=0.5, size=shape),
        )

    def earned(self) -> float:
        """The truth: likes a personalised slot of the target, which draws nothing by chance."""
        sums, count = 0.0, 0
        for page in range(len(self.users)):
            for place, code in _personalised(self._page(page, self.target, 0.0)):
                sums += self._probability(page, place, code)
                count += 1
        return sums / count

    def log(
        self, rng: np.random.Generator, video_exploration: float
    ) -> tuple[Exposures, FloatArray, list[Pool | None], list[Choices | None]]:
        """Feeds of the logged release, which of their slots were liked, what their videos were drawn among,
        and what the target would choose."""
        pages = [self._page(page, self.logged, video_exploration) for page in range(len(self.users))]
        items = [item for page in pages for item in page.items]
        m = len(items)
        liked = np.zeros(m)
        for page, selection in enumerate(pages):
            for place, code in _personalised(selection):
                liked[page * _PAGE + place] = self._probability(page, place, code)
        exposures = Exposures(
            users=self.users,
            arms=np.zeros(len(pages), np.int16),
            times_us=np.arange(len(pages)),
            offsets=np.arange(0, m + 1, _PAGE),
            firsts=np.zeros(len(pages), np.int64),
            videos=np.array([int(item.video_id) for item in items]),
            sources=np.array([item.source for item in items], np.int8),
            scores=np.zeros(m, np.float32),
            source_propensities=np.ones(m, np.float32),
            video_propensities=np.array(
                [each for page in pages for each in page.video_propensities or ()], np.float32
            ),
        )
        pools: list[Pool | None] = [
            pool_of(page.pool, [int(item.video_id) for item in page.items], int)
            for page in pages
            if page.pool
        ]
        order = np.argsort(-self.target, axis=1)[:, :_PROPOSED]
        choices: list[Choices | None] = [self._capped(page, own) for page, own in enumerate(order.tolist())]
        return exposures, (rng.random(m) < liked).astype(np.float64), pools, choices

    def _page(self, page: int, scores: FloatArray, video_exploration: float) -> Selection:
        best = np.argsort(-scores[page])[:_PROPOSED].tolist()
        given = [
            Candidate(
                str(_NEAR * page + row),
                FeedSource.PERSONALISED,
                float(scores[page, row]),
                int(self.owners[page, row]),
            )
            for row in best
        ]
        given += [Candidate(str(-1 - row), FeedSource.TRENDING, 0.0) for row in range(_TRENDING)]
        context: Any = SimpleNamespace(
            query=SimpleNamespace(page_size=_PAGE, served=(), allowed=None),
            failed=frozenset(),
            seed=random.getrandbits(64),
            parameters=FeedParameters(video_exploration=video_exploration),
        )
        return QuotaSelector().select(context, given)

    def _probability(self, page: int, place: int, code: int) -> float:
        return float(self.likes[page, code - _NEAR * page]) * _POSITION**place

    def _capped(self, page: int, rows: list[int]) -> list[int]:
        """At most two videos of an owner, as the mix has it."""
        owners = self.owners[page].tolist()
        return [
            _NEAR * page + row
            for place, row in enumerate(rows)
            if sum(owners[row] == owners[other] for other in rows[:place]) < 2
        ]


def _personalised(selection: Selection) -> list[tuple[int, int]]:
    """The places and codes of the personalised videos of a page."""
    return [
        (place, int(item.video_id))
        for place, item in enumerate(selection.items)
        if item.source is FeedSource.PERSONALISED
    ]
