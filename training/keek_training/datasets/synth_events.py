"""What synthetic users do: they are shown videos in sessions, and like what is near their taste."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.raw import Int64Array
from keek_training.datasets.synth_world import TOPICS, Float64Array, World

_US_PER_S = 1_000_000
_US_PER_DAY = 86_400 * _US_PER_S
_SHOWN_A_SESSION = 15
_SEARCHED = 0.8
"""Share of what is shown that follows the user's own tastes; the rest is what all are shown."""
_FADING_DAYS = 7.0
"""New videos are shown more; the advantage fades by e in this time."""
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True)
class Events:
    """n interactions in the order of time."""

    users: Int64Array
    videos: Int64Array
    kinds: npt.NDArray[np.int8]
    times_us: Int64Array


def make_events(rng: np.random.Generator, world: World, count: int, *, start_us: int, end_us: int) -> Events:
    """Exactly `count` interactions between the two times.

    Raises:
        SetupError: When so few users and videos cannot make so many: no user is shown a video twice.
    """
    possible = len(world.users.activity) * len(world.videos.topics)
    for attempt in range(_ATTEMPTS if count <= possible else 0):
        # A fifth more than needed, and twice as many each time that too much of it was shown before.
        shown = _first_showings(_show(rng, world, int(1.2 * count * 2**attempt) + 10, start_us, end_us))
        done = _act(rng, world, shown)
        if done.sum() >= count:
            return _thin(rng, shown, done, count)
    raise SetupError(
        f"{len(world.users.activity)} users and {len(world.videos.topics)} videos are too few "
        f"for {count} interactions"
    )


def _show(rng: np.random.Generator, world: World, count: int, start_us: int, end_us: int) -> Events:
    """What is shown to whom and when, in the order of time."""
    users = np.sort(rng.choice(len(world.users.activity), count, p=world.users.activity))
    times_us = _session_times(rng, users, start_us, end_us)
    order = np.argsort(times_us, kind="stable")
    users, times_us = users[order], times_us[order]
    topics = _draw_topics(rng, world, users)
    videos = np.empty(count, np.int64)
    days = (times_us - start_us) // _US_PER_DAY
    bounds = np.searchsorted(days, np.arange(days.max() + 2)) if count else np.zeros(1, np.int64)
    for day, (first, last) in enumerate(pairwise(bounds)):
        weights = _weights(world, start_us + day * _US_PER_DAY)
        videos[first:last] = _draw_videos(rng, world.videos.topics, weights, topics[first:last])
    return Events(users, videos, np.zeros(count, np.int8), times_us)


def _session_times(rng: np.random.Generator, users: Int64Array, start_us: int, end_us: int) -> Int64Array:
    """int64 [n] for sorted users: sessions at random moments, more of them in the evening."""
    count = len(users)
    place = np.arange(count) - np.searchsorted(users, users)
    new = place % _SHOWN_A_SESSION == 0
    session = np.cumsum(new) - 1
    sessions = int(new.sum())
    hours = 1 + np.cos((np.arange(24) - 20) / 24 * 2 * np.pi) * 0.8
    of_day_us = (rng.choice(24, sessions, p=hours / hours.sum()) + rng.random(sessions)) * 3600 * _US_PER_S
    day = rng.integers(max(1, (end_us - start_us) // _US_PER_DAY), size=sessions)
    starts_us = start_us + day * _US_PER_DAY + of_day_us.astype(np.int64)
    # Six seconds at least, in which the buttons are pressed.
    elapsed = np.cumsum(6_000 + rng.exponential(15_000, count).astype(np.int64)) * 1000
    times_us = starts_us[session] + elapsed - elapsed[new][session]
    latest_us = end_us - 6 * _US_PER_S
    wrapped: Int64Array = np.where(times_us > latest_us, times_us - _US_PER_DAY, times_us)
    return np.clip(wrapped, start_us, latest_us)


def _draw_topics(rng: np.random.Generator, world: World, users: Int64Array) -> Int64Array:
    """The topic of what is shown; -1 where any will do."""
    # Every user's cumulated tastes behind those of the user before: one search for all.
    cumulated = np.cumsum(world.users.tastes, axis=1) + np.arange(len(world.users.tastes))[:, None]
    topics = np.searchsorted(cumulated.ravel(), users + rng.random(len(users))) - users * len(TOPICS)
    own = rng.random(len(users)) < _SEARCHED
    return np.where(own, np.clip(topics, 0, len(TOPICS) - 1), -1)


def _weights(world: World, day_us: int) -> Float64Array:
    """How often each video is shown on a day: never before it is there, most when it is new."""
    age_days = (day_us - world.videos.create_times_us) / _US_PER_DAY
    fading = 0.1 + np.exp(-np.maximum(age_days, 0) / _FADING_DAYS)
    weights: Float64Array = np.where(age_days >= 0, world.videos.popularity * fading, 0)
    return weights


def _draw_videos(
    rng: np.random.Generator, video_topics: Int64Array, weights: Float64Array, topics: Int64Array
) -> Int64Array:
    """Draws a video for each topic, by weight; from all topics where there is none of it."""
    order = np.argsort(video_topics, kind="stable")
    edges = np.searchsorted(video_topics[order], np.arange(len(TOPICS) + 1))
    cumulated = np.concatenate([[0.0], np.cumsum(weights[order])])
    low, high = cumulated[edges[topics]], cumulated[edges[topics + 1]]
    anything = (topics < 0) | (high <= low)
    low, high = np.where(anything, 0.0, low), np.where(anything, cumulated[-1], high)
    drawn = low + rng.random(len(topics)) * (high - low)
    places = np.searchsorted(cumulated, drawn, side="right") - 1
    videos: Int64Array = order[np.clip(places, 0, len(order) - 1)]
    return videos


def _first_showings(shown: Events) -> Events:
    """Leaves out what a user was shown before."""
    pairs = shown.users * (shown.videos.max(initial=0) + 1) + shown.videos
    _, first = np.unique(pairs, return_index=True)
    first.sort()
    return Events(shown.users[first], shown.videos[first], shown.kinds[first], shown.times_us[first])


def _act(rng: np.random.Generator, world: World, shown: Events) -> npt.NDArray[np.bool_]:
    """bool [n, kinds + 1]: what is done with each video shown, by the affinity of user and video."""
    affinity = np.einsum("nd,nd->n", world.users.vectors[shown.users], world.videos.vectors[shown.videos])
    chances = {
        InteractionKind.VIEW: _rises(affinity, middle=0.25, steepness=8),
        InteractionKind.LIKE: 0.45 * _rises(affinity, middle=0.55, steepness=12),
        InteractionKind.SAVE: 0.12 * _rises(affinity, middle=0.65, steepness=12),
        InteractionKind.SHARE: 0.06 * _rises(affinity, middle=0.6, steepness=12),
    }
    done = np.zeros((len(affinity), max(InteractionKind) + 1), np.bool_)
    for kind, chance in chances.items():
        done[:, kind] = rng.random(len(affinity)) < chance
    done[:, InteractionKind.LIKE :] &= done[:, [InteractionKind.VIEW]]
    done[:, InteractionKind.SKIP] = ~done[:, InteractionKind.VIEW]
    return done


def _rises(affinity: Float64Array, *, middle: float, steepness: float) -> Float64Array:
    chance: Float64Array = 1 / (1 + np.exp(-steepness * (affinity - middle)))
    return chance


def _thin(rng: np.random.Generator, shown: Events, done: npt.NDArray[np.bool_], count: int) -> Events:
    """Keeps random showings with `count` interactions in all."""
    chosen = rng.permutation(len(shown.users))
    enough = int(np.searchsorted(np.cumsum(done[chosen].sum(axis=1)), count)) + 1
    done = done.copy()
    done[chosen[enough:]] = False
    rows, kinds = np.nonzero(done)
    # A second between what is done with one video.
    times_us = shown.times_us[rows] + (kinds - 1) % len(InteractionKind) % 4 * _US_PER_S
    order = np.argsort(times_us, kind="stable")[-count:]
    rows, kinds = rows[order], kinds[order]
    return Events(shown.users[rows], shown.videos[rows], kinds.astype(np.int8), times_us[order])
