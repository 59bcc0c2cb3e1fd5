"""The public data sets themselves, where KEEK_TEST_DATA names the folder that holds them."""

import os
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.registry import open_dataset


@pytest.fixture(scope="module")
def data() -> Path:
    folder = os.environ.get("KEEK_TEST_DATA")
    if not folder:
        pytest.skip("KEEK_TEST_DATA names no folder with the public data sets")
    return Path(folder)


def _users(dataset: Dataset) -> int:
    count: int = pc.count_distinct(dataset.interactions["user_id"]).as_py()
    return count


def _kinds(dataset: Dataset) -> dict[InteractionKind, int]:
    counted = pc.value_counts(dataset.interactions["kind"])
    return {InteractionKind(pair["values"]): pair["counts"] for pair in counted.to_pylist()}


def test_kuairand_has_all_its_videos_and_likes(data: Path) -> None:
    dataset = open_dataset(f"kuairand:{data / 'kuairand-pure'}")
    assert dataset.problems == []
    assert dataset.videos.num_rows == 7_583
    assert _users(dataset) == 26_469
    assert _kinds(dataset)[InteractionKind.LIKE] == 22_534
    assert pc.all(pc.greater(pc.list_value_length(dataset.videos["tags"]), 0)).as_py()


def test_kuairand_with_its_validation_period_adds_its_impressions(data: Path) -> None:
    train = _kinds(open_dataset(f"kuairand:{data / 'kuairand-pure'}"))
    dataset = open_dataset(f"kuairand:{data / 'kuairand-pure'}", part="all")
    assert dataset.problems == []
    assert dataset.videos.num_rows == 7_583
    assert _users(dataset) == 26_768
    added = {kind: count - train.get(kind, 0) for kind, count in _kinds(dataset).items()}
    assert added[InteractionKind.VIEW] + added[InteractionKind.SKIP] == 94_784
    assert added[InteractionKind.LIKE] == 1_625
    assert added[InteractionKind.SHARE] == 76


def test_ml_1m_keeps_the_order_of_every_user(data: Path) -> None:
    dataset = open_dataset(f"movielens:{data / 'ml-1m'}")
    assert dataset.problems == []
    assert dataset.videos.num_rows == 3_883
    assert dataset.interactions.num_rows == 993_571
    assert _users(dataset) == 6_040
    users = dataset.interactions["user_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    times_us = dataset.interactions["event_time_us"].to_numpy()
    order = np.lexsort((times_us, users))
    assert np.all((np.diff(times_us[order]) > 0) | (np.diff(users[order]) > 0))


def test_ml_100k_has_all_its_ratings(data: Path) -> None:
    dataset = open_dataset(f"movielens:{data / 'ml-100k'}")
    assert dataset.problems == []
    assert (dataset.videos.num_rows, _users(dataset)) == (1_682, 943)
    assert _kinds(dataset) == {InteractionKind.LIKE: 55_375, InteractionKind.VIEW: 44_625}
