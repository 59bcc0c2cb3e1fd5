"""Targets from files, and what counts of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluating import SECOND_US, dataset_of, targets_of

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.dataset import Dataset
from keek_training.evaluation.cases import cases_of
from keek_training.evaluation.histories import Histories
from keek_training.evaluation.ranking import rank
from keek_training.evaluation.targets import Targets, read_history, read_targets
from keek_training.features import user_sequences

View, Like, Skip = (InteractionKind[name] for name in ("VIEW", "LIKE", "SKIP"))


@pytest.fixture
def dataset() -> Dataset:
    events = [
        ("u", "a", View),
        ("u", "b", Skip),
        ("w", "b", Like),
        ("w", "c", Like),
        ("u", "c", View),
        ("u", "a", Like),
    ]
    return dataset_of(events, ["a", "b", "c", "d"])


def test_what_was_met_or_named_twice_is_left_out_and_what_is_unknown_is_missed(dataset: Dataset) -> None:
    pairs = [("u", "a"), ("u", "b"), ("u", "d"), ("u", "d"), ("u", "?"), ("u", "!"), ("w", "a"), ("n", "a")]
    cases = cases_of(dataset, targets_of([*pairs, ("w", "c")]))
    assert cases.user_ids == ["u", "w", "n"]
    assert sorted(cases.targets.videos[cases.targets.cases == 0].tolist()) == [-1, -1, 3]
    assert dict(cases.notes) == {
        "targets_twice": 1,
        "targets_seen": 3,
        "targets_unknown": 2,
        "targets_before_known": 0,
        "problems": 0,
    }
    assert cases.is_new_user.tolist() == [False, False, True]
    assert cases.is_new_video.tolist() == [False, False, False, True]


def test_users_whose_targets_are_all_known_do_not_ask(dataset: Dataset) -> None:
    cases = cases_of(dataset, targets_of([("u", "a"), ("w", "d")]))
    assert cases.user_ids == ["w"]
    assert cases.targets.cases.tolist() == [0]
    with pytest.raises(SetupError, match="no target is left"):
        cases_of(dataset, targets_of([("u", "a")]))


def test_without_times_users_ask_at_their_newest_interaction(dataset: Dataset) -> None:
    cases = cases_of(dataset, targets_of([("w", "d"), ("n", "d")]))
    assert cases.now_us.tolist() == [4 * SECOND_US, 6 * SECOND_US]


def test_with_times_users_ask_at_their_first_target_and_a_leak_is_counted(dataset: Dataset) -> None:
    times_us = np.array([9, 8, 1]) * SECOND_US
    targets = Targets(pa.array(["w", "w", "u"]), pa.array(["a", "d", "d"]), times_us)
    cases = cases_of(dataset, targets)
    assert (cases.user_ids, cases.now_us.tolist()) == (["w", "u"], [8 * SECOND_US, SECOND_US])
    assert cases.notes["targets_before_known"] == 1


def test_more_history_is_seen_too_but_not_learnt_from(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("user_id,video_id\nw,d\nn,a\n")
    history, problems = read_history(tmp_path / "more.csv", 6 * SECOND_US)
    assert problems == []
    cases = cases_of(dataset, targets_of([("w", "a"), ("w", "d"), ("n", "b")]), history)
    assert cases.notes["targets_seen"] == 1
    assert cases.is_new_user.tolist() == [False, False]
    assert cases.training_counts.tolist() == [1, 1, 2, 0]
    assert cases.is_new_video.tolist() == [False, False, False, True]
    assert cases.liked.videos.tolist() == [1, 2, 3, 0]
    assert cases.now_us.tolist() == [6 * SECOND_US + 1, 6 * SECOND_US + 2]


def test_some_cases_keep_what_is_theirs(dataset: Dataset) -> None:
    cases = cases_of(dataset, targets_of([("u", "d"), ("w", "d"), ("w", "a"), ("n", "a")]))
    some = cases.take(np.array([1, 2]))
    assert some.user_ids == ["w", "n"]
    assert sorted(zip(some.targets.cases.tolist(), some.targets.videos.tolist(), strict=True)) == [
        (0, 0),
        (0, 3),
        (1, 0),
    ]
    assert some.seen.videos.tolist() == [1, 2]
    assert some.liked.lengths.tolist() == [2, 0]


def test_a_history_counts_a_video_where_it_was_met_last(dataset: Dataset) -> None:
    sequences = user_sequences(dataset.interactions, dataset.videos["video_id"].combine_chunks())
    histories = Histories.of(sequences, 4)
    assert histories.videos.tolist() == [2, 0, 1, 2]
    assert histories.kinds.tolist() == [View, Like, Like, Like]
    assert histories.places.tolist() == [1, 0, 1, 0]
    before = histories.videos.tolist()
    assert histories.matrix().toarray().tolist() == [[1, 0, 1, 0], [0, 1, 1, 0]]
    assert histories.matrix(np.array([0.5, 1, 0.5, 1])).toarray()[0].tolist() == [1, 0, 0.5, 0]
    assert histories.videos.tolist() == before


def test_rankings_leave_out_what_was_seen_and_equal_scores_go_by_popularity(
    dataset: Dataset,
) -> None:
    cases = cases_of(dataset, targets_of([("u", "d"), ("n", "d")]))
    ranked = rank(cases, lambda histories: np.zeros((len(histories), 4), np.float32))
    # u has met a, b and c; c is the most popular.
    assert ranked[0, :2].tolist() == [3, -1]
    assert ranked[1, :5].tolist() == [2, 0, 1, 3, -1]


def test_scores_decide_and_nan_is_never_shown(dataset: Dataset) -> None:
    cases = cases_of(dataset, targets_of([("n", "d")]))
    scores = np.array([[1.0, np.nan, -5.0, 7.0]], np.float32)
    assert rank(cases, lambda _: scores.copy())[0, :4].tolist() == [3, 0, 2, -1]


def test_targets_are_read_from_parquet_with_numbers_and_times(tmp_path: Path) -> None:
    table = {"user_id": [3, 4], "video_id": [30, 40], "timestamp": [1_650_000_000_000, 1_650_000_001_000]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    targets = read_targets(tmp_path / "t.parquet")
    assert targets.user_ids.to_pylist() == ["3", "4"]
    assert targets.video_ids.to_pylist() == ["30", "40"]
    assert targets.times_us is not None
    assert targets.times_us.tolist() == [1_650_000_000_000_000, 1_650_000_001_000_000]


def test_bad_rows_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("user_id,video_id,timestamp\nu,a,2022-04-25T00:00:00Z\n,b,1\nu,c,soon\n")
    targets = read_targets(tmp_path / "t.csv")
    assert targets.video_ids.to_pylist() == ["a"]
    assert [(problem.line, problem.reason.split()[0]) for problem in targets.problems] == [
        (3, "user_id"),
        (4, "timestamp"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user,video_id\nu,a\n", "lacks the column user_id"),
        ("user_id,video_id\n", "holds no target$"),
        ("user_id,video_id\n,a\n", "holds no target: row 2: user_id is empty"),
    ],
)
def test_a_file_of_another_layout_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SetupError, match=message):
        read_targets(tmp_path / "t.csv")


def test_wrong_types_and_files_say_why(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"neither \.parquet nor \.csv"):
        read_targets(tmp_path / "t.json")
    with pytest.raises(SetupError, match="no such file"):
        read_targets(tmp_path / "t.parquet")
    pq.write_table(pa.table({"user_id": [[1], [2]], "video_id": [1, 2]}), tmp_path / "lists.parquet")
    with pytest.raises(SetupError, match=r"the column user_id is list.*, not text"):
        read_targets(tmp_path / "lists.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(SetupError, match="is not a readable Parquet file"):
        read_targets(tmp_path / "cut.parquet")
