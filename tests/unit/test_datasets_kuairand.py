"""KuaiRand-Pure: the published CSV files and the Parquet layout give events of the same meaning."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets import kuairand
from keek_training.datasets.dataset import Dataset

LIKE, SHARE, SKIP, VIEW = (
    InteractionKind.LIKE,
    InteractionKind.SHARE,
    InteractionKind.SKIP,
    InteractionKind.VIEW,
)
LOG_HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,"
    "long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
VIDEO_HEADER = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
    "server_height,music_id,music_type,tag\n"
)
START_US = 1_649_347_200_000_000
"""2022-04-08 in Beijing, when the log starts."""
DAY_US = 86_400_000_000


def _impression(user: int, video: int, time_ms: int, *, like: int = 0, forward: int = 0, hate: int = 0,
                long: int = 0, play_ms: int = 9) -> str:  # fmt: skip
    buttons = f"{like},0,0,{forward},{hate},{long}"
    return f"{user},{video},20220411,1900,{time_ms},1,{buttons},{play_ms},9,0,0,0,0,1\n"


def _write_csvs(folder: Path, log: str, videos: str = "") -> Path:
    (folder / "log_standard_4_08_to_4_21_pure.csv").write_text(LOG_HEADER + log)
    (folder / "video_features_basic_pure.csv").write_text(VIDEO_HEADER + videos)
    return folder


def _events(dataset: Dataset) -> list[tuple[str, str, int, int]]:
    names = ["user_id", "video_id", "kind", "event_time_us"]
    return [tuple(row.values()) for row in dataset.interactions.select(names).to_pylist()]


def _write_sequences(folder: Path, **columns: Any) -> Path:
    lists = {
        name: pa.array(columns.pop(name), pa.list_(pa.int64())) for name in list(columns) if "seq" in name
    }
    pq.write_table(pa.table({**columns, **lists}), folder / "train_user_sequences.parquet")
    return folder


def _kinds_of(dataset: Dataset, user: str) -> list[tuple[str, int]]:
    return [(video, kind) for own, video, kind, _ in _events(dataset) if own == user]


def test_an_impression_becomes_a_view_or_a_skip_and_its_buttons_events_of_their_own(tmp_path: Path) -> None:
    log = (
        _impression(3, 10, 1649408076000, long=1)
        + _impression(3, 11, 1649408077000)
        + _impression(3, 12, 1649408078000, like=1)
        + _impression(3, 13, 1649408079000, forward=1, long=1)
        + _impression(3, 14, 1649408080000, long=1, hate=1)
    )
    dataset = kuairand.read(_write_csvs(tmp_path, log))
    assert dataset.problems == []
    assert _events(dataset) == [
        ("3", "10", VIEW, 1_649_408_076_000_000),
        ("3", "11", SKIP, 1_649_408_077_000_000),
        ("3", "12", VIEW, 1_649_408_078_000_000),
        ("3", "12", LIKE, 1_649_408_078_000_000),
        ("3", "13", VIEW, 1_649_408_079_000_000),
        ("3", "13", SHARE, 1_649_408_079_000_000),
        ("3", "14", SKIP, 1_649_408_080_000_000),
    ]


def test_views_and_skips_say_how_long_was_watched(tmp_path: Path) -> None:
    log = (
        _impression(3, 10, 1649408076000, like=1, long=1, play_ms=7_300)
        + _impression(3, 11, 1649408077000, play_ms=0)
        + _impression(3, 12, 1649408078000, play_ms=86_400_001)
    )
    dataset = kuairand.read(_write_csvs(tmp_path, log))
    assert dataset.problems == []
    rows = dataset.interactions.select(["video_id", "kind", "watched_ms"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("10", VIEW, 7_300),
        ("10", LIKE, None),
        ("11", SKIP, 0),
        ("12", SKIP, None),
    ]


def test_metadata_is_read_and_videos_without_it_are_bare(tmp_path: Path) -> None:
    videos = '10,123,NORMAL,2022-04-10,LongImport,0.0,87433.0,720.0,1280.0,9155697141,9.0,"39,68"\n'
    videos += "12,,AD,,UNKNOWN,,,,,0,,\n"
    log = _impression(1, 11, 1649408076000)
    dataset = kuairand.read(_write_csvs(tmp_path, log, videos))
    assert dataset.problems == []
    nowhere = {"language": "", "region": ""}
    bare = {"owner_id": "", "tags": [], "duration_s": 0.0, "title": "", **nowhere}
    assert dataset.videos.to_pylist() == [
        {
            "video_id": "10",
            "owner_id": "123",
            "tags": ["tag:39", "tag:68", "music:9155697141"],
            "duration_s": pytest.approx(87.433),
            "title": "",
            "create_time_us": 1_649_520_000_000_000,  # midnight of that day in Beijing
            **nowhere,
        },
        {"video_id": "11", **bare, "create_time_us": 1_649_408_076_000_000},
        {"video_id": "12", **bare, "create_time_us": 1_649_408_076_000_000},
    ]


def test_the_folder_that_was_unpacked_is_found_through(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    _write_csvs(tmp_path / "data", _impression(1, 10, 1649408076000))
    assert kuairand.read(tmp_path).interactions.num_rows == 1


def test_random_exposures_are_read_on_demand(tmp_path: Path) -> None:
    _write_csvs(tmp_path, _impression(1, 10, 1649408076000))
    random = tmp_path / "log_random_4_22_to_5_08_pure.csv"
    random.write_text(LOG_HEADER + _impression(2, 10, 1649408077000))
    assert kuairand.read(tmp_path).interactions["user_id"].to_pylist() == ["1"]
    assert kuairand.read(tmp_path, "all").interactions["user_id"].to_pylist() == ["1", "2"]


def test_bad_lines_of_a_log_are_reported_with_their_numbers(tmp_path: Path) -> None:
    good = _impression(1, 10, 1649408076000)
    log = good + good.replace("1649408076000", "now") + good + "1,2\n" + _impression(1, 10, 5, like=2) + good
    dataset = kuairand.read(_write_csvs(tmp_path, log))
    assert [(problem.line, problem.reason) for problem in dataset.problems] == [
        (3, "time_ms 'now' is no time: ISO 8601 or seconds since the epoch are expected"),
        (5, "2 columns where 19 are expected"),
        (6, "is_like '2' is neither 0 nor 1"),
    ]
    assert dataset.interactions.num_rows == 3


def test_sequences_get_evenly_spaced_times_up_to_the_last(tmp_path: Path) -> None:
    _write_sequences(
        tmp_path,
        user_id=[5],
        history_len=[4],
        last_time_ms=[(START_US + 4 * DAY_US) // 1000],
        watch_seq=[[1, 2, 3, 1]],
        like_seq=[[3]],
        long_watch_seq=[[2, 3]],
    )
    assert _events(kuairand.read(tmp_path)) == [
        ("5", "1", SKIP, START_US + 1 * DAY_US),
        ("5", "2", VIEW, START_US + 2 * DAY_US),
        ("5", "3", VIEW, START_US + 3 * DAY_US),
        ("5", "3", LIKE, START_US + 3 * DAY_US),
        ("5", "1", SKIP, START_US + 4 * DAY_US),
    ]


def test_a_like_makes_a_short_watch_a_view(tmp_path: Path) -> None:
    _write_sequences(
        tmp_path,
        user_id=[5],
        history_len=[2],
        last_time_ms=[1650000000000],
        watch_seq=[[7, 7]],
        like_seq=[[7]],
        long_watch_seq=[[]],
    )
    assert _kinds_of(kuairand.read(tmp_path), "5") == [("7", SKIP), ("7", VIEW), ("7", LIKE)]


def test_what_is_older_than_the_impressions_comes_before_them(tmp_path: Path) -> None:
    # Of ten impressions the last two are told; 1, 2 and 3 were watched long before, 3 and 9 liked.
    _write_sequences(
        tmp_path,
        user_id=[5],
        history_len=[10],
        last_time_ms=[(START_US + 10 * DAY_US) // 1000],
        watch_seq=[[4, 5]],
        like_seq=[[9, 3, 5]],
        long_watch_seq=[[1, 2, 3, 5]],
    )
    events = _events(kuairand.read(tmp_path))
    assert [(video, kind) for _, video, kind, _ in events if video not in "9"] == [
        ("1", VIEW),
        ("2", VIEW),
        ("3", VIEW),
        ("3", LIKE),
        ("4", SKIP),
        ("5", VIEW),
        ("5", LIKE),
    ]
    times_us = {(video, kind): time_us for _, video, kind, time_us in events}
    assert times_us["3", VIEW] == times_us["3", LIKE]
    assert times_us["9", VIEW] == times_us["9", LIKE]
    assert all(time_us > START_US for time_us in times_us.values())
    assert max(times_us["9", LIKE], times_us["3", LIKE]) < times_us["4", SKIP] == START_US + 9 * DAY_US


def test_users_of_different_lengths_do_not_mix(tmp_path: Path) -> None:
    _write_sequences(
        tmp_path,
        user_id=[1, 2, 3],
        history_len=[1, 3, 2],
        last_time_ms=[1650000000000, 1650000000001, 1649347200001],
        watch_seq=[[1], [1, 2, 3], [2, 1]],
        like_seq=[[1], [], [2, 1]],
        long_watch_seq=[[], [1, 3], []],
    )
    dataset = kuairand.read(tmp_path)
    assert _kinds_of(dataset, "1") == [("1", VIEW), ("1", LIKE)]
    assert _kinds_of(dataset, "2") == [("1", VIEW), ("2", SKIP), ("3", VIEW)]
    assert _kinds_of(dataset, "3") == [("2", VIEW), ("2", LIKE), ("1", VIEW), ("1", LIKE)]


def test_the_validation_period_is_read_on_demand(tmp_path: Path) -> None:
    _write_sequences(
        tmp_path,
        user_id=[1],
        history_len=[1],
        last_time_ms=[1650000000000],
        watch_seq=[[1]],
        like_seq=[[]],
        long_watch_seq=[[1]],
    )
    with pytest.raises(SetupError, match="has no val_"):
        kuairand.read(tmp_path, "all")
    impression = {
        "user_id": [1], "video_id": [2], "time_ms": [1650812741436], "is_like": [1], "is_forward": [0],
        "is_hate": [0], "long_view": [0],
    }  # fmt: skip
    pq.write_table(pa.table(impression), tmp_path / "val_20220425_0430.parquet")
    assert _kinds_of(kuairand.read(tmp_path), "1") == [("1", VIEW)]
    assert _kinds_of(kuairand.read(tmp_path, "all"), "1") == [("1", VIEW), ("2", VIEW), ("2", LIKE)]


def test_bad_rows_of_the_sequences_are_reported_by_their_number(tmp_path: Path) -> None:
    _write_sequences(
        tmp_path,
        user_id=[1, None, 3],
        history_len=[1, 1, 0],
        last_time_ms=[1650000000000] * 3,
        watch_seq=[[1], [1], [1]],
        like_seq=[[], [], []],
        long_watch_seq=[[], [], []],
    )
    dataset = kuairand.read(tmp_path)
    assert [(problem.line, problem.reason) for problem in dataset.problems] == [
        (2, "user_id is empty"),
        (3, "history_len 0 is no number of impressions"),
    ]
    assert dataset.interactions.num_rows == 1


def test_what_is_no_kuairand_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"holds neither log_standard_\*\.csv nor train_user_sequences"):
        kuairand.read(tmp_path)
    with pytest.raises(SetupError, match="not 'test'"):
        kuairand.read(tmp_path, "test")
    _write_sequences(tmp_path, user_id=[1])
    with pytest.raises(SetupError, match="lacks the columns history_len"):
        kuairand.read(tmp_path)
