"""Users whose behaviour is known, for the benchmark of experiments: sums by user, and feeds with
propensities."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from keek_server.experiments.logs import Exposures, FloatArray, Int64Array
from keek_server.experiments.split_replay import Split
from keek_server.feed.mixing import slots_of
from keek_server.feed.types import FeedSource

_PAGE: Final = 10
_PAGES: Final = 3
_ACTIVITY_SIGMA: Final = 1.0
"""Of the logarithm of a user's activity: the most active tenth does about 40 % of everything."""


@dataclass(frozen=True, slots=True)
class Users:
    """u users: what they do in each of several periods, and did before."""

    likes: Int64Array
    """[u, periods]"""
    slots: Int64Array
    """[u, periods]"""
    likes_before: FloatArray
    slots_before: FloatArray
    """[u] each: over a time as long as all periods together."""


def simulated_users(
    rng: np.random.Generator, count: int, *, lifts: FloatArray | float = 0.0, periods: int = 1
) -> Users:
    """Users of whom some do much, each with a taste that lasts.

    Args:
        rng: Of random numbers.
        count: Of users.
        lifts: Of the probability of a like, as a share of it: one for all, or one a user.
        periods: Times of equal length.
    """
    activity = 3.0 * rng.lognormal(-(_ACTIVITY_SIGMA**2) / 2, _ACTIVITY_SIGMA, count)
    taste = rng.beta(2.0, 18.0, count)
    slots = _PAGE * rng.poisson(np.repeat(activity[:, None] / periods, periods, axis=1))
    # Nobody is in an experiment without having seen a feed.
    slots[:, 0] += _PAGE
    slots_before = _PAGE * rng.poisson(activity)
    now = np.minimum(taste * (1.0 + lifts), 1.0)
    return Users(
        rng.binomial(slots, now[:, None]),
        slots,
        rng.binomial(slots_before, taste).astype(np.float64),
        slots_before.astype(np.float64),
    )


@dataclass(frozen=True, slots=True)
class Viewers:
    """u users who like what they are shown with probabilities that are known.

    Trending videos please less than personal ones, and each source's next video less than the one before.
    """

    personal: FloatArray
    trending: FloatArray
    """[u] each: the probability for the best video of that source, in the first slot."""
    visits: Int64Array
    """[u]: sessions of so many pages each."""

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int) -> "Viewers":
        """Some of them love what trends, most do not."""
        taste = rng.beta(2.0, 10.0, count)
        visits = 1 + rng.poisson(rng.lognormal(0.0, _ACTIVITY_SIGMA, count))
        return cls(taste, taste * rng.beta(2.0, 3.0, count), visits)

    def likes(self, users: Int64Array, is_trending: FloatArray) -> FloatArray:
        """Probabilities, [n, slots], of feeds whose slots are trending or not, from the top of each
        source."""
        trending_before = np.cumsum(is_trending, axis=1) - is_trending
        place = np.arange(is_trending.shape[1])
        fading = 0.98**place
        personal = self.personal[users, None] * 0.97 ** (place - trending_before)
        trending = self.trending[users, None] * 0.90**trending_before
        return fading * np.where(is_trending > 0, trending, personal)

    def pages(self) -> tuple[Int64Array, Int64Array]:
        """Users, and slots on earlier pages: [n] each."""
        users = np.repeat(np.arange(len(self.visits)), self.visits * _PAGES)
        return users, np.tile(_PAGE * np.arange(_PAGES), int(self.visits.sum()))

    def earned(self, split: Split) -> float:
        """The truth: likes a slot under a split without exploration."""
        users, firsts = self.pages()
        return float(self.likes(users, _quota(split.trending_share, firsts)).mean())

    def log(self, rng: np.random.Generator, split: Split) -> tuple[Exposures, FloatArray]:
        """Feeds under a split with exploration, and which slots were liked."""
        users, firsts = self.pages()
        quota = _quota(split.trending_share, firsts)
        redrawn = rng.random(quota.shape) < split.exploration
        is_trending = np.where(redrawn, rng.integers(2, size=quota.shape), quota)
        likes = rng.random(quota.shape) < self.likes(users, is_trending)
        propensities = (1.0 - split.exploration) * (is_trending == quota) + split.exploration / 2
        sources = np.where(is_trending > 0, FeedSource.TRENDING, FeedSource.PERSONALISED)
        exposures = Exposures(
            users=users,
            arms=np.zeros(len(users), np.int16),
            times_us=np.arange(len(users)),
            offsets=np.arange(0, quota.size + 1, _PAGE),
            firsts=firsts,
            videos=np.arange(quota.size),
            sources=sources.reshape(-1).astype(np.int8),
            scores=np.zeros(quota.size, np.float32),
            source_propensities=propensities.reshape(-1).astype(np.float32),
            video_propensities=np.ones(quota.size, np.float32),
        )
        return exposures, likes.reshape(-1).astype(np.float64)


def _quota(trending_share: float, firsts: Int64Array) -> FloatArray:
    """[n, slots]: 1 where a slot is kept for trending."""
    table = np.array([slots_of(trending_share, _PAGE * page, _PAGE) for page in range(_PAGES)])
    quota: FloatArray = (table == FeedSource.TRENDING)[firsts // _PAGE].astype(np.float64)
    return quota
