"""Splits: nothing of the targets is in the training, and validation parts are made of the training alone."""

import numpy as np
import pytest
from evaluating import SECOND_US, dataset_of

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.synth import SynthConfig, synthesise
from keek_training.evaluation.splits import (
    Split,
    Splitter,
    drawn_out,
    last_part,
    leave_last_out,
    time_split,
    tuning_split,
)
from keek_training.evaluation.targets import Targets

View, Like, Skip = (InteractionKind[name] for name in ("VIEW", "LIKE", "SKIP"))
_END_US = 1_750_000_000_000_000


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return synthesise(SynthConfig(users=60, videos=200, interactions=3000, end_us=_END_US))


def _pairs(split: Split) -> list[tuple[str, str]]:
    own = split.targets
    return sorted(zip(own.user_ids.to_pylist(), own.video_ids.to_pylist(), strict=True))


def _rows(dataset: Dataset) -> list[tuple[str, str]]:
    return [(row["user_id"], row["video_id"]) for row in dataset.interactions.to_pylist()]


def test_the_last_video_that_was_met_and_not_skipped_is_left_out_with_all_that_follows() -> None:
    events = [
        ("u", "a", View),
        ("u", "b", View),
        ("u", "b", Like),
        ("u", "a", Like),
        ("u", "c", Skip),
        ("w", "a", View),
        ("x", "a", Skip),
        ("x", "b", Like),
    ]
    split = leave_last_out(dataset_of(events, ["a", "b", "c"]))
    assert _pairs(split) == [("u", "b"), ("x", "b")]
    assert _rows(split.training) == [("u", "a"), ("w", "a"), ("x", "a")]
    assert split.training.videos.num_rows == 3


def test_a_video_that_was_skipped_first_is_no_target() -> None:
    split = leave_last_out(
        dataset_of([("u", "a", View), ("u", "b", View), ("u", "c", Skip), ("u", "c", Like)], "abc")
    )
    assert _pairs(split) == [("u", "b")]


def test_a_time_split_parts_all_users_at_one_moment() -> None:
    events = [("u", "a", View), ("w", "a", View), ("u", "b", View), ("w", "c", Skip), ("n", "c", Like)]
    split = time_split(dataset_of(events, "abc"), 3 * SECOND_US)
    assert _rows(split.training) == [("u", "a"), ("w", "a")]
    assert _pairs(split) == [("n", "c"), ("u", "b")]
    assert split.targets.times_us is not None
    assert split.targets.times_us.tolist() == [3 * SECOND_US, 5 * SECOND_US]


@pytest.mark.parametrize("at_us", [0, 100 * SECOND_US])
def test_a_time_split_with_an_empty_part_is_refused(at_us: int) -> None:
    with pytest.raises(SetupError, match="leaves one of its parts empty"):
        time_split(dataset_of([("u", "a", View), ("u", "b", View)], "ab"), at_us)


def test_the_last_part_holds_out_that_share(dataset: Dataset) -> None:
    split = last_part(0.2)(dataset)
    assert split.training.interactions.num_rows == pytest.approx(
        0.8 * dataset.interactions.num_rows, rel=0.01
    )
    assert split.targets.times_us is not None
    assert split.training.interactions["event_time_us"].to_numpy().max() < split.targets.times_us.min()


def test_drawn_out_takes_one_video_of_a_share_of_the_users(dataset: Dataset) -> None:
    split = drawn_out(0.5)(dataset)
    users = split.targets.user_ids.to_pylist()
    assert len(users) == len(set(users)) == 30
    assert not set(_pairs(split)) & set(_rows(split.training))
    assert _pairs(split) == _pairs(drawn_out(0.5)(dataset))


@pytest.mark.parametrize("splitter", [leave_last_out, last_part(0.2)])
def test_no_target_is_in_the_training(dataset: Dataset, splitter: Splitter) -> None:
    split = splitter(dataset)
    assert not set(_pairs(split)) & set(_rows(split.training))
    assert len(split.targets) >= 30


def test_the_validation_asks_as_the_targets_do(dataset: Dataset) -> None:
    times_us = dataset.interactions["event_time_us"].to_numpy()
    own = leave_last_out(dataset).targets
    later = Targets(own.user_ids, own.video_ids, np.full(len(own), times_us[-1] + 1))
    assert tuning_split(dataset, own).name == "leave-last-out"
    assert tuning_split(dataset, later).name == "time"
    timeless = dataset_of(
        [("u", "a", Like), ("u", "b", Like), ("w", "a", Like), ("w", "b", Like)], "ab", same_time=True
    )
    assert tuning_split(timeless, own).name == "drawn-out"
