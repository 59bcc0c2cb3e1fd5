"""What trends and what rises, read from the projection.

Scores are a forward decay (Cormode et al., "Forward Decay", 2009) kept as log2: they stand still
between events, so that a position in the list is a score, and stays one while the list changes.
"""

import math
from collections.abc import Awaitable, Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from keek_server.clock import now_us
from keek_server.errors import SetupError
from keek_server.interactions.kinds import EVERYTHING, TrendingScope
from keek_server.interactions.projection import Projection
from keek_server.settings import Settings

RISING_CANDIDATES = 1000
"""Videos with the most weight by the short half-life: those the rising list is chosen from."""

Known = Callable[[Iterable[str]], Awaitable[Container[str]]]
"""Gives those of some videos that there are: a video that was deleted trends on until its score is gone."""

_READS = 4
_LATER_READ = 300


@dataclass(frozen=True, slots=True)
class TrendingVideo:
    """A video and its score at the time of asking."""

    video_id: str
    score: float
    """Trending: the decayed weight of its interactions. Rising: how many times faster it gathers
    weight over the short half-life than over the long one; 1 when nothing changes."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page of the trending list ended."""

    log2_score: float = math.inf
    ties: int = 0
    """Videos with this very score on the pages so far."""


@dataclass(frozen=True, slots=True)
class TrendingPage:
    """Some videos, strongest first."""

    videos: list[TrendingVideo]
    end: Position
    is_last: bool
    """Whether the list ends here. Another page may be short, or empty, where most of its videos are gone."""


async def _all(video_ids: Iterable[str]) -> Container[str]:
    return frozenset(video_ids)


class Trending:
    """Reads the lists of any scope."""

    def __init__(self, projection: Projection, settings: Settings) -> None:
        self._projection = projection
        self._scopes = settings.trending_scopes
        self._half_life_s = settings.trending_half_life_s
        self._rising_half_life_s = settings.rising_half_life_s
        self._window_s = settings.trending_window_s
        self._rising_min_score = settings.rising_min_score
        # What one interaction of the lightest kind is worth: less than that a window ago is nothing.
        weights = [weight for weight in settings.interaction_weights.values() if weight > 0]
        self._lightest = math.log2(min(weights, default=1.0))

    def scope(self, kind: TrendingScope, value: str) -> str:
        """The scope of one tag or region.

        Raises:
            SetupError: When trending is not kept for such scopes.
        """
        if kind not in self._scopes:
            raise SetupError(f"trending is not kept per {kind.value} (KEEK_TRENDING_SCOPES)")
        return kind.of(value)

    async def top(
        self, limit: int, *, known: Known = _all, scope: str = EVERYTHING, after: Position = Position()
    ) -> TrendingPage:
        """The strongest videos behind a position; those that a window without events leaves behind are out.

        Those that are not known are passed over, to a bound.

        Raises:
            UnavailableError: When Redis is down, or the projection is not complete yet.
        """
        zero = self.log2_of_one()
        videos: list[TrendingVideo] = []
        count = limit
        for _ in range(_READS):
            rows = await self._rows(scope, after, zero, count)
            names = await known(video_id for video_id, _ in rows)
            places = [place for place, (video_id, _) in enumerate(rows) if video_id in names]
            places = places[: limit - len(videos)]
            videos += [TrendingVideo(rows[place][0], 2.0 ** (rows[place][1] - zero)) for place in places]
            is_full = len(videos) == limit
            # What is read beyond the page belongs to the next one.
            used = rows[: places[-1] + 1] if is_full else rows
            after = _end(after, [score for _, score in used])
            is_last = len(used) == len(rows) < count
            if is_full or is_last:
                break
            count = max(count, _LATER_READ)
        return TrendingPage(videos, after, is_last)

    def log2_of_one(self) -> float:
        """What stands in the list for a score of 1 at present: a score is 2 to the power of what is above."""
        return now_us() / 1e6 / self._half_life_s

    async def rows(self, count: int) -> Sequence[tuple[str, float]]:
        """The `count` strongest of everything, with the logarithms of their scores; deleted ones as well.

        Raises:
            UnavailableError: When Redis is down, or the projection is not complete yet.
        """
        return await self._rows(EVERYTHING, Position(), self.log2_of_one(), count)

    async def _rows(
        self, scope: str, after: Position, zero: float, count: int
    ) -> Sequence[tuple[str, float]]:
        """The next `count` of a list, with the logarithms of their scores."""
        floor = zero - self._window_s / self._half_life_s + self._lightest
        (rows,) = await self._projection.read_together(
            lambda pipeline, prefix: pipeline.zrevrangebyscore(
                f"{prefix}trending:{scope}",
                repr(after.log2_score),
                floor,
                start=after.ties,
                num=count,
                withscores=True,
            )
        )
        return list(rows)

    async def rising(
        self, limit: int, *, known: Known = _all, scope: str = EVERYTHING, offset: int = 0
    ) -> list[TrendingVideo]:
        """The videos whose weight grows fastest, by the ratio of a short and a long half-life.

        Those that are not known are left out.

        A stream of r weights a second settles at a decayed sum of r * half_life / ln 2. So the
        ratio of both sums, each divided by its half-life, is 1 for a video whose stream is steady.

        Raises:
            UnavailableError: When Redis is down, or the projection is not complete yet.
        """
        now_s = now_us() / 1e6
        zero, zero_rising = now_s / self._half_life_s, now_s / self._rising_half_life_s
        floor = zero_rising + math.log2(max(self._rising_min_score, 1e-300))
        (rows,) = await self._projection.read(
            lambda pipeline, prefix: pipeline.zrevrangebyscore(
                f"{prefix}rising:{scope}", "+inf", floor, start=0, num=RISING_CANDIDATES, withscores=True
            )
        )
        if not rows:
            return []
        (scores,) = await self._projection.read(
            lambda pipeline, prefix: pipeline.zmscore(f"{prefix}trending:{scope}", [row[0] for row in rows])
        )
        names = await known(video_id for video_id, _ in rows)
        steady = math.log2(self._half_life_s / self._rising_half_life_s)
        ranked = [
            TrendingVideo(video_id, 2.0 ** ((short - zero_rising) - (long - zero) + steady))
            for (video_id, short), long in zip(rows, scores, strict=True)
            if long is not None and video_id in names
        ]
        ranked.sort(key=lambda video: (-video.score, video.video_id))
        return ranked[offset : offset + limit]


def _end(after: Position, scores: Sequence[Any]) -> Position:
    if not scores:
        return after
    last = scores[-1]
    ties = sum(1 for _ in takewhile(lambda score: score == last, reversed(scores)))
    return Position(last, ties + after.ties if last == after.log2_score else ties)
