"""The prototype's files: what each value may look like, and what is reported about the others."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets import prototype
from keek_training.datasets.dataset import INTERACTION_SCHEMA, VIDEO_SCHEMA, Dataset

VIDEOS = "video_id,tags,duration,owner\nv1,cats|dogs,12.5,o1\nv2,,,\n"
LOG = "user_id,video_id,action,timestamp\n"


def _read(folder: Path, log: str = LOG, videos: str | bytes = VIDEOS) -> Dataset:
    (folder / "videos.csv").write_bytes(videos if isinstance(videos, bytes) else videos.encode())
    (folder / "interaction_log.csv").write_text(log)
    return prototype.read(folder)


def _videos(dataset: Dataset) -> dict[str, dict[str, Any]]:
    return {row.pop("video_id"): row for row in dataset.videos.to_pylist()}


def _times_us(dataset: Dataset) -> list[int]:
    return list(dataset.interactions["event_time_us"].to_pylist())


def _problems(dataset: Dataset) -> list[tuple[str, int, str]]:
    return [(problem.file.name, problem.line, problem.reason) for problem in dataset.problems]


def test_both_files_become_a_data_set(tmp_path: Path) -> None:
    dataset = _read(tmp_path, LOG + "u2,v2,like,1700000001\nu1,v1,view,1700000000\n")
    assert dataset.problems == []
    assert dataset.videos.schema == VIDEO_SCHEMA
    assert dataset.interactions.schema == INTERACTION_SCHEMA
    assert _videos(dataset) == {
        "v1": {
            "owner_id": "o1",
            "tags": ["cats", "dogs"],
            "duration_s": 12.5,
            "title": "",
            "create_time_us": 1_700_000_000_000_000,
            "language": "",
            "region": "",
        },
        "v2": {
            "owner_id": "",
            "tags": [],
            "duration_s": 0.0,
            "title": "",
            "create_time_us": 1_700_000_001_000_000,
            "language": "",
            "region": "",
        },
    }
    assert [tuple(row.values()) for row in dataset.interactions.to_pylist()] == [
        ("u1", "v1", InteractionKind.VIEW, 1_700_000_000_000_000),
        ("u2", "v2", InteractionKind.LIKE, 1_700_000_001_000_000),
    ]


@pytest.mark.parametrize(
    "written",
    [
        "2023-11-14T22:13:20Z",
        "2023-11-14 22:13:20",
        "2023-11-14T23:13:20+01:00",
        "2023-11-14T22:13:20.000000",
        "1700000000",
        "1700000000.0",
        "1700000000000",
        "1700000000000000",
    ],
)
def test_every_spelling_of_a_time_is_the_same_moment(tmp_path: Path, written: str) -> None:
    assert _times_us(_read(tmp_path, f"{LOG}u1,v1,like,{written}\n")) == [1_700_000_000_000_000]


def test_fractions_of_seconds_are_kept(tmp_path: Path) -> None:
    log = LOG + "u1,v1,like,1700000000.25\nu1,v1,like,2023-11-14T22:13:20.123456Z\n"
    assert _times_us(_read(tmp_path, log)) == [1_700_000_000_123_456, 1_700_000_000_250_000]


@pytest.mark.parametrize("kind", InteractionKind)
def test_every_action_is_read_in_any_case(tmp_path: Path, kind: InteractionKind) -> None:
    log = LOG + "".join(f"u1,v1,{kind.name.lower()},{n}\nu1,v1,{kind.name.title()} ,{n}\n" for n in (1, 2))
    dataset = _read(tmp_path, log)
    assert dataset.problems == []
    assert dataset.interactions["kind"].to_pylist() == [kind] * 4


@pytest.mark.parametrize(
    ("written", "tags"),
    [
        ("cats|dogs", ["cats", "dogs"]),
        ('"cats,dogs"', ["cats", "dogs"]),
        ("cats; dogs ;cats;", ["cats", "dogs"]),
        ('"[""a|b"", ""c""]"', ["a|b", "c"]),
        ("[]", []),
    ],
)
def test_tags_are_split_or_read_as_json(tmp_path: Path, written: str, tags: list[str]) -> None:
    dataset = _read(tmp_path, videos=f"video_id,tags,duration,owner\nv1,{written},1,o1\n")
    assert dataset.problems == []
    assert _videos(dataset)["v1"]["tags"] == tags


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("u1,v1,adore,1", "action 'adore' is not one of view, like, save, share, skip"),
        ("u1,v1,,1", "action is empty"),
        (",v1,like,1", "user_id is empty"),
        ("u1, ,like,1", "video_id is empty"),
        (f"{'ü' * 65},v1,like,1", f"user_id '{'ü' * 58}… is longer than 128 bytes"),
        ("u1,v1,like,", "timestamp is empty"),
        (
            "u1,v1,like,soon",
            "timestamp 'soon' is no time: ISO 8601 or seconds since the epoch are expected",
        ),
        ("u1,v1,like,nan", "timestamp 'nan' is no time: ISO 8601 or seconds since the epoch are expected"),
        ("u1,v1,like,-5", "timestamp '-5' is before 1970"),
        ("u1,v1,like,1e300", "timestamp '1e300' is no time in seconds since the epoch"),
        ("u1,v1,like,2999-01-01", "timestamp '2999-01-01' is in the future"),
        ("u1,v3,like,1", "the video 'v3' is not among the videos"),
        ("u1,v1,like", "3 columns where 4 are expected"),
        ("u1,v1,like,1,2", "5 columns where 4 are expected"),
    ],
)
def test_a_bad_interaction_is_reported_and_the_others_are_kept(
    tmp_path: Path, line: str, reason: str
) -> None:
    dataset = _read(tmp_path, f"{LOG}u1,v1,like,1\n{line}\nu2,v2,view,2\n")
    assert _problems(dataset) == [("interaction_log.csv", 3, reason)]
    assert dataset.interactions["user_id"].to_pylist() == ["u1", "u2"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("v3,,nan,o1", "duration 'nan' is not a number"),
        ("v3,,-1,o1", "duration '-1' is negative"),
        ("v3,,1e5,o1", "duration '1e5' is longer than a day"),
        ("v3,,1e999,o1", "duration '1e999' is not a number"),
        ("v3,,1e300,o1", "duration '1e300' is longer than a day"),
        ("v3,,12 s,o1", "duration '12 s' is not a number"),
        (",,1,o1", "video_id is empty"),
        ("v1,,1,o1", "the video 'v1' stands on line 2 already"),
        (f"v3,,1,{'o' * 129}", f"owner '{'o' * 58}… is longer than 128 bytes"),
        (f"v3,{'|'.join(map(str, range(33)))},1,o1", "tags: 33 tags where 32 are allowed"),
        (f"v3,{'t' * 129},1,o1", "tags: a tag is longer than 128 bytes or has a NUL character"),
        ('v3,"[""a"",",1,o1', "tags: a JSON list was started and not finished"),
        ("v3,[1],1,o1", "tags: not a list of strings"),
        ("v3,1,o1", "3 columns where 4 are expected"),
    ],
)
def test_a_bad_video_is_reported_and_the_others_are_kept(tmp_path: Path, line: str, reason: str) -> None:
    dataset = _read(tmp_path, videos=f"video_id,tags,duration,owner\nv1,,1,o1\n{line}\nv2,,2,o2\n")
    assert _problems(dataset) == [("videos.csv", 3, reason)]
    assert list(_videos(dataset)) == ["v1", "v2"]


def test_line_numbers_hold_behind_newlines_within_quotes(tmp_path: Path) -> None:
    videos = 'video_id,tags,duration,owner\nv1,"a\nb",1,o1\nv2,,x,o2\n'
    assert _problems(_read(tmp_path, videos=videos)) == [("videos.csv", 4, "duration 'x' is not a number")]


def test_invalid_utf8_is_reported(tmp_path: Path) -> None:
    dataset = _read(tmp_path, videos=b"video_id,tags,duration,owner\nv1,,1,\xff\nv2,,2,o2\n")
    assert _problems(dataset) == [("videos.csv", 2, "not valid UTF-8")]


def test_problems_come_in_the_order_of_their_lines(tmp_path: Path) -> None:
    dataset = _read(tmp_path, LOG + "u1,v1,like,1\nu1\nu1,v9,like,1\n,v1,like,1\nu1,v1,no,1\n")
    assert [line for _, line, _ in _problems(dataset)] == [3, 4, 5, 6]


def test_five_minutes_ahead_is_the_limit(tmp_path: Path) -> None:
    now = time.time()
    dataset = _read(tmp_path, f"{LOG}u1,v1,like,{now + 290}\nu2,v1,like,{now + 330}\n")
    assert dataset.interactions["user_id"].to_pylist() == ["u1"]
    assert [line for _, line, _ in _problems(dataset)] == [3]


def test_an_id_of_128_bytes_is_not_too_long(tmp_path: Path) -> None:
    dataset = _read(tmp_path, f"{LOG}{'ü' * 64},v1,like,1\n")
    assert dataset.problems == []


def test_interactions_of_one_moment_keep_their_order(tmp_path: Path) -> None:
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    lines = [f"u{n},v1,like,{(moment + timedelta(seconds=n % 2)).isoformat()}" for n in range(50)]
    users = _read(tmp_path, LOG + "\n".join(lines)).interactions["user_id"].to_pylist()
    assert users == [f"u{n}" for n in range(0, 50, 2)] + [f"u{n}" for n in range(1, 50, 2)]


def test_a_video_without_interactions_was_created_when_the_data_begins(tmp_path: Path) -> None:
    dataset = _read(tmp_path, LOG + "u1,v1,like,100\nu1,v1,like,50\n")
    assert _videos(dataset)["v2"]["create_time_us"] == 50_000_000
    assert _videos(_read(tmp_path))["v2"]["create_time_us"] == 0


def test_a_log_alone_is_read_with_videos_that_are_known(tmp_path: Path) -> None:
    known = _read(tmp_path).videos
    (tmp_path / "old.csv").write_text(f"{LOG}u1,v1,like,1\nu1,v7,like,2\nu2,v2,save,3\n")
    dataset = prototype.read_log(tmp_path / "old.csv", known)
    assert _problems(dataset) == [("old.csv", 3, "the video 'v7' is not among the videos")]
    assert dataset.interactions["video_id"].to_pylist() == ["v1", "v2"]
    assert dataset.videos.equals(known)


def test_the_two_files_may_have_names_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"{LOG}u1,v1,like,1\n")
    (tmp_path / "b.csv").write_text(VIDEOS + "v3,,x,\n")
    dataset = prototype.read_files(tmp_path / "a.csv", tmp_path / "b.csv")
    assert _problems(dataset) == [("b.csv", 4, "duration 'x' is not a number")]
    assert dataset.interactions.num_rows == 1


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"interaction_log\.csv lacks the columns action, timestamp"):
        _read(tmp_path, "user_id,video_id\n")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot read .*videos\.csv"):
        prototype.read(tmp_path)
