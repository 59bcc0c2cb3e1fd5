"""Any Parquet or CSV through a column mapping."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets import table
from keek_training.datasets.dataset import INTERACTION_EXTRAS, INTERACTION_SCHEMA, Dataset

MOMENT = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
MOMENT_US = 1_700_000_000_000_000


def _write(folder: Path, videos: dict[str, Any], interactions: dict[str, Any]) -> Path:
    pq.write_table(pa.table(videos), folder / "videos.parquet")
    pq.write_table(pa.table(interactions), folder / "interactions.parquet")
    return folder


def _interactions(**columns: Any) -> dict[str, Any]:
    return {"user_id": ["u1"], "video_id": ["v1"], "kind": ["like"], "event_time": [MOMENT], **columns}


def _reasons(dataset: Dataset) -> list[tuple[str, int, str]]:
    return [(problem.file.name, problem.line, problem.reason) for problem in dataset.problems]


def test_parquet_with_keeks_own_names(tmp_path: Path) -> None:
    videos = {
        "video_id": ["v1"],
        "owner_id": ["o1"],
        "tags": [["a", "b"]],
        "duration_s": [1.5],
        "title": ["One"],
        "create_time": [MOMENT],
        "language": ["pt-BR"],
        "region": ["BR"],
    }
    dataset = table.read(_write(tmp_path, videos, _interactions()))
    assert dataset.problems == []
    assert dataset.videos.to_pylist() == [
        {
            "video_id": "v1",
            "owner_id": "o1",
            "tags": ["a", "b"],
            "duration_s": 1.5,
            "title": "One",
            "create_time_us": MOMENT_US,
            "language": "pt-BR",
            "region": "BR",
        }
    ]
    assert [tuple(row.values()) for row in dataset.interactions.to_pylist()] == [
        ("u1", "v1", InteractionKind.LIKE, MOMENT_US)
    ]


def test_csv_with_keeks_own_names(tmp_path: Path) -> None:
    (tmp_path / "videos.csv").write_text('video_id,title\nv1,"One, two"\n')
    (tmp_path / "interactions.csv").write_text(
        "event_time,kind,video_id,user_id\n2023-11-14T22:13:20,2,v1,u1\n"
    )
    dataset = table.read(tmp_path)
    assert dataset.videos["title"].to_pylist() == ["One, two"]
    assert dataset.interactions.to_pylist() == [
        {"user_id": "u1", "video_id": "v1", "kind": InteractionKind.LIKE, "event_time_us": MOMENT_US}
    ]


@pytest.mark.parametrize(
    "times",
    [
        pa.array([MOMENT], pa.timestamp("ns", "UTC")),
        pa.array([MOMENT], pa.timestamp("ms", "Europe/Paris")),
        pa.array([MOMENT.replace(tzinfo=None)], pa.timestamp("s")),
        pa.array([MOMENT_US]),
        pa.array([MOMENT_US / 1e6]),
        pa.array([1_700_000_000], pa.uint32()),
        pa.array(["2023-11-14T22:13:20Z"], pa.large_string()),
    ],
)
def test_times_of_every_type_are_the_same_moment(tmp_path: Path, times: pa.Array) -> None:
    dataset = table.read(_write(tmp_path, {"video_id": ["v1"]}, _interactions(event_time=times)))
    assert dataset.interactions["event_time_us"].to_pylist() == [MOMENT_US]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([7], pa.int32()),
        pa.array([7.0, None])[:1],
        pa.array(["7"], pa.large_string()),
        pa.array([" 7 "]).dictionary_encode(),
    ],
)
def test_ids_of_every_type_are_the_same_text(tmp_path: Path, ids: pa.Array) -> None:
    dataset = table.read(_write(tmp_path, {"video_id": ids}, _interactions(video_id=["7"])))
    assert dataset.problems == []
    assert dataset.videos["video_id"].to_pylist() == ["7"]


def test_columns_are_mapped_for_both_files_or_for_one(tmp_path: Path) -> None:
    videos, interactions = (
        {"id": ["v1"], "secs": [3]},
        {"uid": ["u1"], "iid": ["v1"], "kind": [1], "ts": [5]},
    )
    mapping = {
        "user_id": "uid",
        "video_id": "iid",
        "videos.video_id": "id",
        "duration_s": "secs",
        "event_time": "ts",
    }
    dataset = table.read(_write(tmp_path, videos, interactions), mapping)
    assert dataset.videos["duration_s"].to_pylist() == [3.0]
    assert dataset.interactions.to_pylist() == [
        {"user_id": "u1", "video_id": "v1", "kind": InteractionKind.VIEW, "event_time_us": 5_000_000}
    ]


def test_the_mapping_may_lie_beside_the_data(tmp_path: Path) -> None:
    interactions = _interactions()
    interactions["uid"] = interactions.pop("user_id")
    _write(tmp_path, {"video_id": ["v1"]}, interactions)
    (tmp_path / "columns.json").write_text(json.dumps({"user_id": "uid"}))
    assert table.read(tmp_path).interactions["user_id"].to_pylist() == ["u1"]
    with pytest.raises(SetupError, match=r"lacks the column user_id"):
        table.read(tmp_path, {})


def test_a_kind_may_be_given_for_all_rows(tmp_path: Path) -> None:
    interactions = _interactions()
    del interactions["kind"]
    dataset = table.read(_write(tmp_path, {"video_id": ["v1"]}, interactions), {"kind": "=save"})
    assert dataset.interactions["kind"].to_pylist() == [InteractionKind.SAVE]
    with pytest.raises(SetupError, match="'adore' is not one of view, like"):
        table.read(tmp_path, {"kind": "=adore"})


def test_bad_rows_are_reported_by_their_number(tmp_path: Path) -> None:
    videos = {"video_id": ["v1", None, "v2", "v3"], "duration_s": [1.0, 1.0, float("nan"), None]}
    interactions = {
        "user_id": ["u1", "u1", "u1", "u1"],
        "video_id": ["v1", "v9", "v3", "v3"],
        "kind": ["like", "like", "like", None],
        "event_time": pa.array([MOMENT, MOMENT, None, MOMENT], pa.timestamp("us", "UTC")),
    }
    dataset = table.read(_write(tmp_path, videos, interactions))
    assert _reasons(dataset) == [
        ("videos.parquet", 2, "video_id is empty"),
        ("videos.parquet", 3, "duration_s nan is not a number"),
        ("interactions.parquet", 2, "the video 'v9' is not among the videos"),
        ("interactions.parquet", 3, "event_time is empty"),
        ("interactions.parquet", 4, "kind is empty"),
    ]
    assert dataset.videos["video_id"].to_pylist() == ["v1", "v3"]
    assert dataset.interactions.num_rows == 1


def test_how_long_videos_were_watched_is_kept_of_views_and_skips(tmp_path: Path) -> None:
    interactions = {
        "user_id": [f"u{i}" for i in range(7)],
        "video_id": ["v1"] * 7,
        "kind": ["view", "skip", "like", "view", "like", "view", "view"],
        "event_time": [MOMENT] * 7,
        "watched_s": ["12.5", "0", "", "-1", "3", "86400.5", "long"],
    }
    dataset = table.read(_write(tmp_path, {"video_id": ["v1"]}, interactions))
    assert _reasons(dataset) == [
        ("interactions.parquet", 4, "watched_s '-1' is not 0 to a day"),
        ("interactions.parquet", 5, "watched_s '3' goes with a view or a skip alone"),
        ("interactions.parquet", 6, "watched_s '86400.5' is not 0 to a day"),
        ("interactions.parquet", 7, "watched_s 'long' is not a number"),
    ]
    assert dataset.interactions["watched_ms"].to_pylist() == [12_500, 0, None]


def test_event_ids_and_regions_are_kept_where_there_are_any(tmp_path: Path) -> None:
    interactions = {
        "user_id": ["u1", "u2", "u3"],
        "video_id": ["v1"] * 3,
        "kind": ["like"] * 3,
        "event_time": [MOMENT] * 3,
        "event_id": ["01890000-0000-7000-8000-0000000000AB", None, "1"],
        "region": ["de", None, "fr"],
    }
    dataset = table.read(_write(tmp_path, {"video_id": ["v1"]}, interactions))
    assert _reasons(dataset) == [("interactions.parquet", 3, "event_id '1' is not a UUID")]
    assert dataset.interactions.schema == pa.schema(
        [*INTERACTION_SCHEMA, *(INTERACTION_EXTRAS.field(name) for name in ("event_id", "region"))]
    )
    assert dataset.interactions["event_id"].to_pylist() == ["01890000-0000-7000-8000-0000000000ab", None]
    assert dataset.interactions["region"].to_pylist() == ["de", ""]


def test_event_ids_and_regions_may_be_mapped_or_absent(tmp_path: Path) -> None:
    _write(tmp_path, {"video_id": ["v1"]}, _interactions(country=["x" * 17]))
    assert table.read(tmp_path).interactions.schema == INTERACTION_SCHEMA
    assert _reasons(table.read(tmp_path, {"region": "country"})) == [
        ("interactions.parquet", 1, "region 'xxxxxxxxxxxxxxxxx' is longer than 16 bytes")
    ]


def test_a_region_of_both_files_may_be_mapped_at_once_or_for_each(tmp_path: Path) -> None:
    videos = {"video_id": ["v1"], "country": ["BR"], "land": ["PT"]}
    _write(tmp_path, videos, _interactions(country=["KZ"]))
    dataset = table.read(tmp_path, {"region": "country"})
    assert (dataset.videos["region"].to_pylist(), dataset.interactions["region"].to_pylist()) == (
        ["BR"],
        ["KZ"],
    )
    dataset = table.read(tmp_path, {"videos.region": "land", "region": "country"})
    assert (dataset.videos["region"].to_pylist(), dataset.interactions["region"].to_pylist()) == (
        ["PT"],
        ["KZ"],
    )
    with pytest.raises(SetupError, match=r"neither file has the column state"):
        table.read(tmp_path, {"region": "state"})
    with pytest.raises(SetupError, match=r"interactions\.parquet lacks the column land"):
        table.read(tmp_path, {"interactions.region": "land"})


def test_languages_that_are_none_are_reported(tmp_path: Path) -> None:
    videos = {"video_id": ["v1", "v2", "v3", "v4"], "language": ["pt-BR", "pt_BR", None, "a" * 8 + "-b" * 14]}
    dataset = table.read(_write(tmp_path, videos, _interactions()))
    assert _reasons(dataset) == [
        ("videos.parquet", 2, "language 'pt_BR' is not a BCP 47 language tag"),
        ("videos.parquet", 4, "language 'aaaaaaaa-b-b-b-b-b-b-b-b-b-b-b-b-b-b' is longer than 35 bytes"),
    ]
    assert dataset.videos["language"].to_pylist() == ["pt-BR", ""]


def test_an_id_that_is_half_a_number_is_reported(tmp_path: Path) -> None:
    dataset = table.read(_write(tmp_path, {"video_id": [1.5, 2.0]}, _interactions(video_id=[2])))
    assert _reasons(dataset) == [("videos.parquet", 1, "video_id 1.5 is not a whole number")]


def test_a_column_that_is_mapped_by_hand_must_be_there(tmp_path: Path) -> None:
    _write(tmp_path, {"video_id": ["v1"]}, _interactions())
    with pytest.raises(SetupError, match=r"videos\.parquet lacks the column headline"):
        table.read(tmp_path, {"title": "headline"})


def test_a_mapping_of_what_keek_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="names 'owner'; it may name video_id, owner_id"):
        table.read(tmp_path, {"owner": "author"})


@pytest.mark.parametrize("text", ["{", "[]", '{"user_id": 1}'])
def test_a_mapping_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "columns.json").write_text(text)
    with pytest.raises(SetupError, match=r"columns\.json"):
        table.read(tmp_path)


def test_a_column_of_a_hopeless_type_is_named(tmp_path: Path) -> None:
    _write(tmp_path, {"video_id": [["v1"]]}, _interactions())
    with pytest.raises(SetupError, match="the column video_id is list"):
        table.read(tmp_path)
    _write(tmp_path, {"video_id": ["v1"]}, _interactions(event_time=[[1]]))
    with pytest.raises(SetupError, match="the column event_time is list"):
        table.read(tmp_path)


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"holds neither videos\.parquet nor videos\.csv"):
        table.read(tmp_path)
    (tmp_path / "videos.parquet").write_bytes(b"PAR1")
    with pytest.raises(SetupError, match=r"videos\.parquet is not a readable Parquet file"):
        table.read(tmp_path)
