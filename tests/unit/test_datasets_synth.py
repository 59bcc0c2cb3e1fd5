"""Synthetic data: as asked for, the same each time, and with something in it to learn."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from keek_server.clock import now_us
from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets import prototype, table
from keek_training.datasets.dataset import INTERACTION_EXTRAS, INTERACTION_SCHEMA, VIDEO_SCHEMA, Dataset
from keek_training.datasets.synth import SynthConfig, parse_config, synthesise
from keek_training.datasets.write import write_csv, write_parquet, write_prototype

END_US = 1_767_225_600_000_000
DAY_US = 86_400_000_000
SMALL = SynthConfig(users=300, videos=800, interactions=12_000, days=10, seed=3, end_us=END_US)


@pytest.fixture(scope="module")
def small() -> Dataset:
    return synthesise(SMALL)


def test_it_has_the_size_that_was_asked_for(small: Dataset) -> None:
    assert small.videos.schema == VIDEO_SCHEMA
    assert small.interactions.schema == pa.schema(
        [*INTERACTION_SCHEMA, INTERACTION_EXTRAS.field("watched_ms")]
    )
    assert sorted(small.videos["video_id"].to_pylist()) == sorted(f"v{n}" for n in range(1, 801))
    assert small.interactions.num_rows == 12_000
    assert set(small.interactions["user_id"].to_pylist()) <= {f"u{n}" for n in range(1, 301)}
    assert set(small.interactions["kind"].to_pylist()) == set(InteractionKind)


def test_the_same_configuration_gives_the_same_data(small: Dataset) -> None:
    again = synthesise(SMALL)
    assert again.videos.equals(small.videos)
    assert again.interactions.equals(small.interactions)
    other = synthesise(SynthConfig(300, 800, 12_000, 10, seed=4, end_us=END_US))
    assert not other.interactions.equals(small.interactions)


def test_owners_keep_to_a_language_and_a_region(small: Dataset) -> None:
    rows = small.videos.select(["owner_id", "language", "region"]).to_pylist()
    homes = {(row["owner_id"], row["language"], row["region"]) for row in rows}
    assert len(homes) == len({owner for owner, *_ in homes})
    assert {language.partition("-")[0] for _, language, _ in homes} >= {"en", "pt", "es", ""}


def test_everything_happens_in_the_days_before_the_end(small: Dataset) -> None:
    times_us = small.interactions["event_time_us"].to_numpy()
    assert np.all(np.diff(times_us) >= 0)
    assert times_us[0] >= END_US - 10 * DAY_US
    assert times_us[-1] < END_US
    assert times_us[-1] - times_us[0] > 9 * DAY_US


def test_no_video_is_seen_before_it_is_there(small: Dataset) -> None:
    joined = small.interactions.join(small.videos.select(["video_id", "create_time_us"]), "video_id")
    assert pc.all(pc.greater_equal(joined["event_time_us"], joined["create_time_us"])).as_py()
    late = pc.sum(pc.greater(small.videos["create_time_us"], END_US - 10 * DAY_US)).as_py()
    assert late == 400


def test_no_user_is_shown_a_video_twice(small: Dataset) -> None:
    seen = pc.is_in(
        small.interactions["kind"], pa.array([InteractionKind.VIEW, InteractionKind.SKIP], pa.int8())
    )
    shown = small.interactions.filter(seen)
    # A few at the very start may have lost the view that a like belongs to, never have two.
    pairs = Counter(zip(shown["user_id"].to_pylist(), shown["video_id"].to_pylist(), strict=True))
    assert max(pairs.values()) == 1


def test_views_and_skips_say_how_long_the_video_was_watched(small: Dataset) -> None:
    joined = small.interactions.join(small.videos.select(["video_id", "duration_s"]), "video_id")
    kinds = joined["kind"].to_numpy()
    watched_s = joined["watched_ms"].to_numpy(zero_copy_only=False) / 1000
    seen = np.isin(kinds, [InteractionKind.VIEW, InteractionKind.SKIP])
    assert np.array_equal(~np.isnan(watched_s), seen)
    shares = watched_s / joined["duration_s"].to_numpy()
    assert np.all(shares[seen] <= 1.001)
    assert 0.6 < shares[kinds == InteractionKind.VIEW].mean() < 0.8
    assert shares[kinds == InteractionKind.SKIP].mean() < 0.2


def test_popularity_is_skewed(small: Dataset) -> None:
    counts = sorted(Counter(small.interactions["video_id"].to_pylist()).values(), reverse=True)
    assert sum(counts[:80]) > 0.3 * sum(counts)


def test_tags_tell_what_a_user_likes(small: Dataset) -> None:
    """Whose past likes share a tag with a video skips it less than others do."""
    tags = dict(zip(small.videos["video_id"].to_pylist(), small.videos["tags"].to_pylist(), strict=True))
    liked: dict[str, Counter[str]] = {}
    viewed: dict[bool, list[bool]] = {True: [], False: []}
    for row in small.interactions.to_pylist():
        own = {tag for tag in tags[row["video_id"]] if "-" in tag}
        past = liked.setdefault(row["user_id"], Counter())
        if row["kind"] in (InteractionKind.VIEW, InteractionKind.SKIP) and past:
            viewed[bool(own & past.keys())].append(row["kind"] == InteractionKind.VIEW)
        elif row["kind"] == InteractionKind.LIKE:
            past.update(own)
    assert np.mean(viewed[True]) > np.mean(viewed[False]) + 0.15


def test_what_others_viewed_together_beats_popularity(small: Dataset) -> None:
    """Item-item cosine finds a held-out view more often than the most viewed videos do."""
    rows = small.interactions.filter(pc.equal(small.interactions["kind"], int(InteractionKind.VIEW)))
    users = rows["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    videos = rows["video_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    last = np.unique(users[::-1], return_index=True)[1]
    held_out = len(users) - 1 - last
    seen = np.zeros((users.max() + 1, videos.max() + 1))
    seen[users, videos] = 1
    seen[users[held_out], videos[held_out]] = 0
    counts = seen.sum(axis=0)
    likeness = seen.T @ seen / np.sqrt(np.outer(counts + 5, counts + 5))
    np.fill_diagonal(likeness, 0)

    def hits(scores: np.ndarray) -> float:
        best = np.argsort(np.where(seen > 0, -1, scores), axis=1)[:, -20:]
        return float((best == videos[held_out, None]).any(axis=1).mean())

    assert hits(seen @ likeness) > 1.3 * hits(np.tile(counts, (len(seen), 1)))


def test_even_a_tiny_world_is_whole() -> None:
    dataset = synthesise(SynthConfig(users=1, videos=1, interactions=1, days=1, end_us=END_US))
    assert (dataset.videos.num_rows, dataset.interactions.num_rows) == (1, 1)


def test_more_interactions_than_there_can_be_are_refused() -> None:
    for count in (1200, 10**9):
        with pytest.raises(SetupError, match=f"40 users and 30 videos are too few for {count} interactions"):
            synthesise(SynthConfig(users=40, videos=30, interactions=count, end_us=END_US))


def test_by_default_it_ends_at_the_last_midnight() -> None:
    end_us = SynthConfig().end_us
    assert end_us % DAY_US == 0
    assert 0 <= now_us() - end_us <= DAY_US + 60_000_000


def test_a_configuration_is_read_from_text() -> None:
    config = parse_config("videos=100,users=20,interactions=300,days=4,seed=7,end=2026-01-01")
    assert config == SynthConfig(20, 100, 300, 4, 7, END_US)
    assert parse_config("end=2026-01-01T01:00:00+01:00") == SynthConfig(end_us=END_US)
    assert parse_config("") == SynthConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video=1", "synth has no 'video'; it has users, videos, interactions, days, seed, end"),
        ("videos=many", "'videos=many' does not say a number"),
        ("videos", "'videos' does not say a number"),
        ("end=soon", "'end=soon' does not say a number or a time"),
        ("videos=0", "at least 1 of videos, not 0"),
        ("seed=-1", "must not be negative"),
        ("end=1970-01-02", "too near to 1970"),
    ],
)
def test_a_configuration_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(SetupError, match=message):
        parse_config(text)


def test_written_as_a_table_it_reads_back_the_same(small: Dataset, tmp_path: Path) -> None:
    for writer in (write_parquet, write_csv):
        folder = tmp_path / writer.__name__
        folder.mkdir()
        assert all(file.parent == folder for file in writer(small, folder))
        read = table.read(folder)
        assert read.problems == []
        assert read.videos.equals(small.videos)
        assert read.interactions.equals(small.interactions)


def test_written_for_the_prototype_it_reads_back_without_titles(small: Dataset, tmp_path: Path) -> None:
    write_prototype(small, tmp_path)
    read = prototype.read(tmp_path)
    assert read.problems == []
    assert read.interactions.equals(small.interactions)
    told = ["video_id", "owner_id", "tags", "duration_s"]
    assert read.videos.select(told).equals(small.videos.select(told))
