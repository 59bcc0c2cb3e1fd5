"""The users of the feed's benchmark: how often each asks, and what each has seen."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keek_server.clock import now_us
from keek_server.interactions.kinds import InteractionKind

USERS: Final = 100_000
_REGULARS: Final = 2_000
"""The users who ask most, by Zipf's law two calls of three, have long histories."""
_LONG, _SHORT = 50, 3
_PERIOD_US: Final = 30 * 24 * 3600 * 10**6
_KINDS: Final = (InteractionKind.VIEW, InteractionKind.LIKE, InteractionKind.SAVE, InteractionKind.SHARE)
_KIND_SHARES: Final = (0.8, 0.14, 0.03, 0.03)


@dataclass(frozen=True, slots=True)
class Events:
    """n interactions in the order of their times."""

    users: npt.NDArray[np.int64]
    """int64 [n], ranks from 0, the user who asks most first."""
    videos: npt.NDArray[np.int64]
    """int64 [n], rows of the corpus."""
    kinds: npt.NDArray[np.int64]
    times_us: npt.NDArray[np.int64]


def user_id(rank: int) -> str:
    """Of the user who asks so often."""
    return f"u{rank}"


def asking_users(draws: int, *, seed: int) -> list[str]:
    """Users as they ask, one after the other: the k-th asks 1/k as often as the first."""
    odds = 1.0 / np.arange(1, USERS + 1)
    ranks = np.random.default_rng(seed).choice(USERS, draws, p=odds / odds.sum())
    return [user_id(rank) for rank in ranks.tolist()]


def past_events(video_count: int) -> Events:
    """A history for every user, over the last thirty days; some videos are in many, most in none."""
    rng = np.random.default_rng(11)
    lengths = np.where(np.arange(USERS) < _REGULARS, _LONG, _SHORT)
    users = np.repeat(np.arange(USERS), lengths)
    times_us = now_us() - rng.integers(0, _PERIOD_US, len(users))
    order = np.argsort(times_us)
    return Events(
        users=rng.permutation(users)[order],
        videos=_watched(video_count, len(users), rng),
        kinds=rng.choice(_KINDS, len(users), p=_KIND_SHARES),
        times_us=times_us[order],
    )


def new_interactions(video_ids: list[str], draws: int, *, seed: int) -> list[dict[str, Any]]:
    """RecordInteraction requests for ghz, by the users who ask."""
    rng = np.random.default_rng(seed)
    videos = _watched(len(video_ids), draws, rng).tolist()
    kinds = rng.choice(_KINDS, draws, p=_KIND_SHARES).tolist()
    return [
        {
            "interaction": {
                "event_id": "{{newUUID}}",
                "user_id": user,
                "video_id": video_ids[video],
                "kind": f"INTERACTION_KIND_{InteractionKind(kind).name}",
            }
        }
        for user, video, kind in zip(asking_users(draws, seed=seed), videos, kinds, strict=True)
    ]


def _watched(video_count: int, draws: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Rows, the low ones more often."""
    return (video_count * rng.random(draws) ** 3).astype(np.int64)
