"""The world behind synthetic data: topics, the videos made of them, and users with tastes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keek_training.datasets.raw import Int64Array

Float64Array = npt.NDArray[np.float64]

TOPICS = (
    "music", "dance", "comedy", "cooking", "travel", "football", "gaming", "pets", "fitness", "fashion",
    "beauty", "diy", "cars", "science", "history", "art", "nature", "film", "books", "tech", "gardening",
    "magic", "cycling", "languages",
)  # fmt: skip

_DIMENSIONS = 16
_TAGS_A_TOPIC = 10
_COMMON_TAGS = ("viral", "funny", "tutorial", "live", "new", "challenge", "review", "behind-the-scenes")
_VIDEOS_AN_OWNER = 20
_US_PER_DAY = 86_400_000_000
_OLDEST_DAYS = 60
_NO_TAG = -1

TAG_NAMES = (
    *_COMMON_TAGS,
    *(f"{topic}-{number}" for topic in TOPICS for number in range(1, _TAGS_A_TOPIC + 1)),
)

LOCALES = (
    ("en-US", "US"), ("pt-BR", "BR"), ("es-MX", "MX"), ("en-GB", "GB"), ("de", "DE"), ("ru", "KZ"),
    ("kk", "KZ"), ("pt-PT", "PT"), ("", ""),
)  # fmt: skip
"""Languages with their regions, the most common first; of some videos neither is known."""


@dataclass(frozen=True, slots=True)
class Videos:
    """n videos, oldest first."""

    topics: Int64Array
    """int64 [n]: the main topic of each."""
    vectors: Float64Array
    """float64 [n, 16], of length 1: what it is about."""
    popularity: Float64Array
    """float64 [n]: how much more often it is shown than others of its topic and age."""
    owners: Int64Array
    """int64 [n]: owners keep to a topic, mostly."""
    tags: Int64Array
    """int64 [n, 6]: into TAG_NAMES; -1 where there is none."""
    durations_s: npt.NDArray[np.float32]
    """float32 [n]."""
    create_times_us: Int64Array
    """int64 [n]."""


@dataclass(frozen=True, slots=True)
class Users:
    """n users."""

    tastes: Float64Array
    """float64 [n, topics]: how often each looks for a topic; rows sum to 1."""
    vectors: Float64Array
    """float64 [n, 16], of length 1: what it likes; the dot product with a video's is their affinity."""
    activity: Float64Array
    """float64 [n]: each one's share of all that is watched."""


@dataclass(frozen=True, slots=True)
class World:
    """Videos and users in one space of topics."""

    videos: Videos
    users: Users


def make_world(rng: np.random.Generator, *, videos: int, users: int, start_us: int, end_us: int) -> World:
    """Draws a world; half of its videos are older than `start_us`, the others come until `end_us`."""
    centres = _unit(rng.normal(size=(len(TOPICS), _DIMENSIONS)))
    return World(_make_videos(rng, centres, videos, start_us, end_us), _make_users(rng, centres, users))


def draw_locales(rng: np.random.Generator, owners: Int64Array) -> Int64Array:
    """Where each of n videos is from: int64 [n], into LOCALES; all videos of an owner from one place."""
    count = int(owners.max()) + 1
    own: Int64Array = rng.choice(len(LOCALES), count, p=_zipf(len(LOCALES), 0.7))[owners]
    return own


def _make_videos(
    rng: np.random.Generator, centres: Float64Array, count: int, start_us: int, end_us: int
) -> Videos:
    owner_count = max(1, count // _VIDEOS_AN_OWNER)
    owners = rng.choice(owner_count, count, p=_zipf(owner_count, 0.8))
    owner_topics = rng.choice(len(TOPICS), owner_count, p=_zipf(len(TOPICS), 0.5))
    topics = np.where(rng.random(count) < 0.8, owner_topics[owners], rng.integers(len(TOPICS), size=count))
    seconds = np.where(rng.random(count) < 0.3, rng.integers(len(TOPICS), size=count), topics)
    noise = rng.normal(size=(count, _DIMENSIONS)) / np.sqrt(_DIMENSIONS)
    return Videos(
        topics=topics,
        vectors=_unit(centres[topics] + 0.6 * centres[seconds] + 0.8 * noise),
        popularity=rng.permutation(_zipf(count, 0.9)),
        owners=owners,
        tags=_draw_tags(rng, topics, seconds),
        durations_s=np.clip(rng.lognormal(3.2, 0.7, count), 3, 600).round(1).astype(np.float32),
        create_times_us=_draw_create_times(rng, count, start_us, end_us),
    )


def _draw_create_times(rng: np.random.Generator, count: int, start_us: int, end_us: int) -> Int64Array:
    older = (count + 1) // 2
    times_us = np.concatenate(
        [
            rng.integers(start_us - _OLDEST_DAYS * _US_PER_DAY, start_us, older),
            rng.integers(start_us, end_us, count - older),
        ]
    )
    return np.sort(times_us // 1000 * 1000)


def _draw_tags(rng: np.random.Generator, topics: Int64Array, seconds: Int64Array) -> Int64Array:
    """Three tags of the main topic at most, two of the second, and one that tells nothing."""
    count = len(topics)
    within = _zipf(_TAGS_A_TOPIC, 0.7)
    columns = []
    for topic, chance in ((topics, 1.0), (topics, 0.8), (topics, 0.4), (seconds, 0.7), (seconds, 0.3)):
        tag = len(_COMMON_TAGS) + topic * _TAGS_A_TOPIC + rng.choice(_TAGS_A_TOPIC, count, p=within)
        columns.append(np.where(rng.random(count) < chance, tag, _NO_TAG))
    common = rng.integers(len(_COMMON_TAGS), size=count)
    columns.append(np.where(rng.random(count) < 0.5, common, _NO_TAG))
    return np.stack(columns, axis=1)


def _make_users(rng: np.random.Generator, centres: Float64Array, count: int) -> Users:
    # A small concentration: two or three topics make up most of what a user looks for.
    tastes = rng.dirichlet(np.full(len(TOPICS), 0.12), count)
    noise = rng.normal(size=(count, _DIMENSIONS)) / np.sqrt(_DIMENSIONS)
    activity = rng.lognormal(0.0, 0.8, count)
    return Users(tastes, _unit(tastes @ centres + 0.4 * noise), activity / activity.sum())


def _zipf(count: int, exponent: float) -> Float64Array:
    """Shares that fall with the rank as a power."""
    shares = np.arange(1, count + 1) ** -exponent
    whole: Float64Array = shares / shares.sum()
    return whole


def _unit(vectors: Float64Array) -> Float64Array:
    scaled: Float64Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled
