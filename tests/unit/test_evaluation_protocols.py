"""The public data sets and their splits, where KEEK_TEST_DATA names the folder that holds them."""

import os
from pathlib import Path

import numpy as np
import pytest

from keek_training.evaluation.cases import cases_of
from keek_training.evaluation.protocols import PROTOCOLS, Protocol, some_users
from keek_training.evaluation.splits import Split


def _protocol(name: str) -> Protocol:
    root = os.environ.get("KEEK_TEST_DATA")
    if not root:
        pytest.skip("KEEK_TEST_DATA names no folder with the public data sets")
    return PROTOCOLS[name](Path(root) / name)


def _pairs(split: Split) -> set[tuple[str, str]]:
    own = split.targets
    return set(zip(own.user_ids.to_pylist(), own.video_ids.to_pylist(), strict=True))


def test_kuairand_is_split_in_time() -> None:
    protocol = _protocol("kuairand-pure")
    split = protocol.split
    assert split.name == "time"
    assert split.targets.times_us is not None
    # The last day of training ends 46 minutes after the first of the targets.
    newest_us = split.training.interactions["event_time_us"][-1].as_py()
    assert (split.targets.times_us > newest_us).mean() > 0.999
    cases = cases_of(split.training, split.targets)
    assert (len(cases), len(cases.targets.videos)) == (13_693, 29_294)
    assert int(cases.is_new_user.sum()) == 205
    assert cases.notes["targets_unknown"] == 0
    assert cases.notes["targets_before_known"] == 0


def test_movielens_leaves_the_last_movie_of_each_user_out_and_tunes_on_the_one_before() -> None:
    protocol = _protocol("ml-1m")
    split = protocol.split
    assert len(split.targets) == 6_040
    assert split.training.interactions.num_rows == 993_571 - 6_040
    validation = protocol.tuning(split.training)
    assert len(validation.targets) == 6_040
    assert not _pairs(split) & _pairs(validation)


def test_tiktok_keeps_the_parts_of_the_file() -> None:
    protocol = _protocol("tiktok")
    split = protocol.split
    assert split.training.interactions.num_rows == 59_541
    cases = cases_of(split.training, split.targets)
    assert len(cases.targets.videos) == 3_051
    assert int(cases.is_new_video[cases.targets.videos].sum()) == 223
    assert not _pairs(split) & _pairs(protocol.tuning(split.training))


def test_some_users_are_new_where_they_are_new_in_the_whole() -> None:
    protocol = _protocol("kuairand-pure")
    few = some_users(protocol, 300)
    cases = cases_of(few.split.training, few.split.targets)
    assert few.split.training.videos.num_rows == protocol.split.training.videos.num_rows
    assert 200 < len(cases) <= 300
    whole = cases_of(protocol.split.training, protocol.split.targets)
    new = {whole.user_ids[row] for row in np.flatnonzero(whole.is_new_user)}
    assert {cases.user_ids[row] for row in np.flatnonzero(cases.is_new_user)} <= new
