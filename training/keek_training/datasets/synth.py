"""Synthetic data: users with tastes, videos with topics, and interactions a model can learn from.

Popularity is skewed and drifts as videos age, users come in sessions, and what they view,
like, save, share or skip follows how near a video is to their taste. The same
configuration always gives the same data.
"""

from dataclasses import dataclass, field, fields

import numpy as np
import pyarrow as pa

from keek_server.clock import iso_us, now_us
from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.assemble import assemble, interaction_table
from keek_training.datasets.dataset import VIDEO_SCHEMA, Dataset
from keek_training.datasets.raw import Int64Array
from keek_training.datasets.synth_events import Events, make_events
from keek_training.datasets.synth_world import LOCALES, TAG_NAMES, TOPICS, Videos, draw_locales, make_world

_US_PER_DAY = 86_400_000_000
_WATCHED = {InteractionKind.VIEW: (5.0, 2.0), InteractionKind.SKIP: (1.0, 6.0)}
"""Beta distributions of the share that is watched of a video."""


def _last_midnight_us() -> int:
    """Not now: what is generated twice on one day is the same, and imported once."""
    return now_us() // _US_PER_DAY * _US_PER_DAY


@dataclass(frozen=True, slots=True)
class SynthConfig:
    """The size and the seed of the data."""

    users: int = 2_000
    videos: int = 5_000
    interactions: int = 120_000
    days: int = 30
    """The interactions happened in this many days before `end_us`."""
    seed: int = 1
    end_us: int = field(default_factory=_last_midnight_us)
    """Microseconds since the epoch; the last midnight in UTC by default."""

    def __post_init__(self) -> None:
        for name in ("users", "videos", "interactions", "days"):
            if getattr(self, name) < 1:
                raise SetupError(f"synthetic data needs at least 1 of {name}, not {getattr(self, name)}")
        if self.seed < 0:
            raise SetupError("the seed of synthetic data must not be negative")
        if self.end_us < (self.days + 61) * _US_PER_DAY:
            raise SetupError("the end of synthetic data is too near to 1970")


def parse_config(text: str) -> SynthConfig:
    """Reads `key=value,...` with the fields of SynthConfig; `end` is a date or a time in ISO 8601.

    Raises:
        SetupError: When a key is unknown or a value is not of its kind.
    """
    numbers = [each.name for each in fields(SynthConfig) if each.name != "end_us"]
    values: dict[str, int] = {}
    for pair in filter(None, text.split(",")):
        key, _, value = pair.partition("=")
        try:
            if key in numbers:
                values[key] = int(value)
            elif key == "end":
                values["end_us"] = _end_us(value)
            else:
                raise SetupError(f"synth has no {key!r}; it has {', '.join(numbers)}, end")
        except ValueError as error:
            raise SetupError(f"synth: {pair!r} does not say a number or a time") from error
    return SynthConfig(**values)


def synthesise(config: SynthConfig) -> Dataset:
    """Generates the data set: users u1, u2, ..., videos v1, v2, ... from the oldest on.

    Raises:
        SetupError: When so few users and videos cannot make so many interactions.
    """
    rng = np.random.default_rng(config.seed)
    start_us = config.end_us - config.days * _US_PER_DAY
    world = make_world(rng, videos=config.videos, users=config.users, start_us=start_us, end_us=config.end_us)
    events = make_events(rng, world, config.interactions, start_us=start_us, end_us=config.end_us)
    video_ids = _ids("v", config.videos)
    interactions = interaction_table(
        _ids("u", config.users).take(pa.array(events.users)),
        video_ids.take(pa.array(events.videos)),
        events.kinds,
        pa.array(events.times_us),
        watched_ms=_watched_ms(config.seed, events, world.videos),
    )
    locales = draw_locales(rng, world.videos.owners)
    return assemble("synth", _video_table(video_ids, world.videos, locales), interactions)


def _watched_ms(seed: int, events: Events, videos: Videos) -> pa.Array:
    """int32 [n]: how long the video was watched, of views and skips; null of other kinds."""
    # Draws of its own: the rest of the data is what it was without.
    rng = np.random.default_rng([seed, 1])
    watched_ms = np.full(len(events.kinds), np.nan)
    for kind, (a, b) in _WATCHED.items():
        own = events.kinds == kind
        shares = rng.beta(a, b, int(own.sum()))
        watched_ms[own] = np.round(1000 * shares * videos.durations_s[events.videos[own]])
    return pa.array(np.nan_to_num(watched_ms).astype(np.int32), mask=np.isnan(watched_ms))


def _video_table(video_ids: pa.Array, videos: Videos, locales: Int64Array) -> pa.Table:
    titles = [
        f"{TOPICS[topic].capitalize()} {number}" for number, topic in enumerate(videos.topics.tolist(), 1)
    ]
    columns = {
        "video_id": video_ids,
        "owner_id": _ids("o", int(videos.owners.max()) + 1).take(pa.array(videos.owners)),
        "tags": pa.array([_tag_names(row) for row in videos.tags.tolist()], pa.list_(pa.string())),
        "duration_s": pa.array(videos.durations_s),
        "title": pa.array(titles),
        "create_time_us": pa.array(videos.create_times_us),
        "language": pa.array([language for language, _ in LOCALES]).take(pa.array(locales)),
        "region": pa.array([region for _, region in LOCALES]).take(pa.array(locales)),
    }
    return pa.table(columns).cast(VIDEO_SCHEMA)


def _tag_names(row: list[int]) -> list[str]:
    return list(dict.fromkeys(TAG_NAMES[tag] for tag in row if tag >= 0))


def _ids(prefix: str, count: int) -> pa.Array:
    return pa.array([f"{prefix}{number}" for number in range(1, count + 1)])


def _end_us(text: str) -> int:
    if (time_us := iso_us(text)) is None:
        raise ValueError(text)
    return time_us
