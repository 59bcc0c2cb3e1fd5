"""Videos from Parquet: columns of several types, clip vectors, bad rows with their number."""

import datetime as dt
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import keek
from keek.cli.importing.journal import Ranges
from keek.cli.importing.parquet_file import (
    PARQUET_COLUMNS,
    TableError,
    count_rows,
    is_parquet,
    read_rows,
)
from keek.cli.importing.rows import Line, Malformed, Row, Unread

IDS = ["v1", "v2", "v3"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "videos.parquet"


def _read(path: Path, /, **columns: Any) -> list[Line]:
    pq.write_table(pa.table(columns), path)
    return list(read_rows(path))


def _videos(lines: list[Line]) -> list[keek.Video]:
    rows = [line for line in lines if isinstance(line, Row)]
    assert len(rows) == len(lines), lines
    return [row.video for row in rows]


def _time(text: str) -> Any:
    video = keek.Video()
    video.create_time.FromJsonString(text)
    return video.create_time


def test_all_columns_are_read_in_any_order(file: Path) -> None:
    [line] = _read(
        file,
        title=["One"],
        create_time=[dt.datetime(2024, 5, 1, 8, tzinfo=dt.UTC)],
        duration_s=[12.5],
        file=["clips/a.mp4"],
        tags=[["cats", " dogs ", "cats", ""]],
        owner_id=["o1"],
        language=["pt-BR "],
        region=["BR"],
        video_id=[" v1 "],
    )
    video = keek.Video(video_id="v1", owner_id="o1", title="One", duration_s=12.5, tags=["cats", "dogs"])
    video.language, video.region = "pt-BR", "BR"
    video.create_time.CopyFrom(_time("2024-05-01T08:00:00Z"))
    assert line == Row(1, video, "clips/a.mp4")


def test_the_identifier_alone_suffices_and_nothing_is_unknown(file: Path) -> None:
    assert _videos(_read(file, video_id=IDS)) == [keek.Video(video_id=name) for name in IDS]
    empty = {
        name: pa.nulls(1, pa.string())
        for name in ("owner", "title", "file", "tags", "create_time", "language", "region")
    }
    lines = _read(file, video_id=["v1"], duration=pa.nulls(1, pa.float32()), **empty)
    assert lines == [Row(1, keek.Video(video_id="v1"))]


def test_columns_that_are_empty_in_all_rows_are_as_if_they_were_not_there(file: Path) -> None:
    empty = {name: pa.nulls(2) for name in PARQUET_COLUMNS if name != "video_id"}
    assert _videos(_read(file, video_id=IDS[:2], **empty)) == [keek.Video(video_id=name) for name in IDS[:2]]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([7, 8], pa.int64()),
        pa.array(["7", "8"], pa.large_string()),
        pa.array(["7", "8"]).dictionary_encode(),
    ],
)
def test_identifiers_may_be_numbers_or_any_kind_of_text(file: Path, ids: Any) -> None:
    assert [video.video_id for video in _videos(_read(file, video_id=ids))] == ["7", "8"]


@pytest.mark.parametrize(
    "tags",
    [
        pa.array([["a", "b"], None, []]),
        pa.array([["a", "b"], [], None], pa.large_list(pa.string())),
        pa.array([["a", None, "b"], [None], []]),
        pa.array(["a|b", "", None]),
        pa.array(['["a", "b"]', None, " "]),
    ],
)
def test_tags_are_lists_or_text(file: Path, tags: Any) -> None:
    videos = _videos(_read(file, video_id=IDS, tags=tags))
    assert [list(video.tags) for video in videos] == [["a", "b"], [], []]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pa.array([1_714_550_400], pa.timestamp("s")), "2024-05-01T08:00:00Z"),
        (pa.array([1_714_550_400_123], pa.timestamp("ms", "Asia/Almaty")), "2024-05-01T08:00:00.123Z"),
        (pa.array([1_714_550_400_123_456_789], pa.timestamp("ns")), "2024-05-01T08:00:00.123456Z"),
        (pa.array([dt.date(2024, 5, 1)]), "2024-05-01T00:00:00Z"),
        (pa.array(["2024-05-01T10:00:00+02:00"]), "2024-05-01T08:00:00Z"),
        (pa.array(["2024-05-01T10:00:00+02:00"]).dictionary_encode(), "2024-05-01T08:00:00Z"),
        (pa.array([-1_500_000], pa.timestamp("us")), "1969-12-31T23:59:58.500Z"),
    ],
)
def test_times_are_timestamps_dates_or_text(file: Path, times: Any, expected: str) -> None:
    [video] = _videos(_read(file, video_id=["v1"], create_time=times))
    assert video.create_time == _time(expected)


# -- clip vectors ---------------------------------------------------------------------------------
def _list_array(kind: str, vectors: np.ndarray[Any, Any]) -> Any:
    flat = pa.array(vectors.reshape(-1))
    if kind == "fixed":
        return pa.FixedSizeListArray.from_arrays(flat, 512)
    return pa.ListArray.from_arrays(pa.array(range(0, len(flat) + 1, 512), pa.int32()), flat)


@pytest.mark.parametrize("kind", ["fixed", "variable"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_clip_vectors_become_float16_of_length_1(file: Path, kind: str, dtype: Any) -> None:
    vectors = (np.random.default_rng(0).standard_normal((3, 512)) * 3).astype(dtype)
    videos = _videos(_read(file, video_id=IDS, clip_vector=_list_array(kind, vectors)))
    for video, vector in zip(videos, vectors.astype(np.float64), strict=True):
        sent = np.frombuffer(video.clip_vector, "<f2").astype(np.float64)
        assert sent.shape == (512,)
        assert abs(np.linalg.norm(sent) - 1) < 1e-3
        np.testing.assert_allclose(sent, vector / np.linalg.norm(vector), atol=1e-4)


def test_rows_without_a_clip_vector_have_none_and_bad_ones_are_reported(file: Path) -> None:
    good = [1.0] + [0.0] * 511
    vectors = pa.array(
        [good, None, [1.0] * 3, [0.0] * 512, [float("nan")] * 512, [None] * 512, [float("inf")] * 512, good],
        pa.list_(pa.float64()),
    )
    lines = _read(file, video_id=[f"v{n}" for n in range(8)], clip_vector=vectors)
    unit = np.array(good, "<f2").tobytes()
    reason = "clip_vector has no length, or values that are no numbers"
    assert lines == [
        Row(1, keek.Video(video_id="v0", clip_vector=unit)),
        Row(2, keek.Video(video_id="v1")),
        Malformed(3, "clip_vector has 3 values, not 512"),
        *(Malformed(number, reason) for number in (4, 5, 6, 7)),
        Row(8, keek.Video(video_id="v7", clip_vector=unit)),
    ]


# -- what is wrong --------------------------------------------------------------------------------
def test_a_bad_row_is_reported_and_the_others_are_read(file: Path) -> None:
    lines = _read(
        file,
        video_id=["v1", None, " ", "v4", "v5", "v6"],
        duration=[1.0, 1.0, 1.0, float("nan"), 2.0, 2.0],
        tags=["a", "a", "a", "a", "[1]", "a"],
        create_time=["", "", "", "", "", "yesterday"],
    )
    assert lines == [
        Row(1, keek.Video(video_id="v1", duration_s=1.0, tags=["a"])),
        Malformed(2, "video_id is empty"),
        Malformed(3, "video_id is empty"),
        Malformed(4, "duration 'nan' is not a number of seconds"),
        Malformed(5, "tags '[1]' are not a JSON list of strings"),
        Malformed(6, "create_time 'yesterday' is not an ISO 8601 time"),
    ]


@pytest.mark.parametrize("name", ["video_id", "title", "tags", "create_time", "file"])
def test_a_row_with_text_that_is_not_utf_8_is_reported_and_the_others_are_read(file: Path, name: str) -> None:
    columns = {"video_id": pa.array(IDS), name: _text([b"v1", b"\xff\xfe", None])}
    if name == "create_time":
        columns[name] = _text([b"2024-05-01T08:00:00Z", b"\xff\xfe", None])
    if name == "video_id":
        columns[name] = _text([b"v1", b"\xff\xfe", b"v3"])
    first, second, third = _read(file, **columns)
    assert second == Malformed(2, "not valid UTF-8")
    assert [row.video.video_id for row in (first, third) if isinstance(row, Row)] == ["v1", "v3"]


def test_a_row_with_a_tag_that_is_not_utf_8_is_reported(file: Path) -> None:
    values = _text([b"cats", b"dogs", b"\xff\xfe", b"food"])
    lines = _read(file, video_id=IDS, tags=pa.ListArray.from_arrays([0, 2, 3, 4], values))
    assert lines[1] == Malformed(2, "not valid UTF-8")
    assert [list(row.video.tags) for row in lines if isinstance(row, Row)] == [["cats", "dogs"], ["food"]]


def _text(values: list[bytes | None]) -> Any:
    """Said to be text, which nothing checks."""
    stored = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(stored), stored.buffers())


def test_columns_that_are_not_read_are_named(file: Path) -> None:
    lines = _read(file, video_id=["v1"], owner_id=["o1"], likes=[3])
    assert lines == [Unread(("likes",)), Row(1, keek.Video(video_id="v1", owner_id="o1"))]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"id": ["v1"]}, "no column video_id"),
        ({"video_id": ["v1"], "owner": ["a"], "owner_id": ["b"]}, "has column owner twice"),
        ({"video_id": ["v1"], "create_time": [1.5]}, "create_time is of type double"),
        ({"video_id": ["v1"], "clip_vector": ["x"]}, "clip_vector is of type string"),
        ({"video_id": ["v1"], "duration": [[1.0]]}, "a column of type list"),
    ],
)
def test_a_table_whose_columns_mean_nothing_is_an_error(
    file: Path, columns: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TableError, match=reason):
        _read(file, **columns)


def test_a_damaged_file_is_an_error(file: Path) -> None:
    pq.write_table(pa.table({"video_id": [str(n) for n in range(10_000)]}), file, compression="none")
    content = bytearray(file.read_bytes())
    content[1000:2000] = bytes(1000)
    file.write_bytes(content)
    with pytest.raises(TableError):
        list(read_rows(file))
    file.write_bytes(content[:500])
    with pytest.raises(TableError):
        count_rows(file)


# -- in parts -------------------------------------------------------------------------------------
def test_rows_that_are_done_are_passed_over_in_every_batch(file: Path) -> None:
    count = 5000
    pq.write_table(pa.table({"video_id": [f"v{n}" for n in range(1, count + 1)]}), file, row_group_size=1300)
    done = Ranges([(1, 700), (1024, 1025), (1500, 3100), (4999, 4999)])
    lines = [line.line for line in read_rows(file, done) if isinstance(line, Row)]
    assert lines == [n for n in range(1, count + 1) if n not in done]
    assert all(row.video.video_id == f"v{row.line}" for row in read_rows(file, done) if isinstance(row, Row))
    assert count_rows(file) == count


def test_parquet_is_known_by_its_first_bytes(file: Path, tmp_path: Path) -> None:
    _read(file, video_id=["v1"])
    assert is_parquet(file)
    (tmp_path / "videos.csv").write_text("video_id\nv1\n")
    assert not is_parquet(tmp_path / "videos.csv")


def test_without_pyarrow_it_is_said_how_to_get_it(file: Path) -> None:
    _read(file, video_id=["v1"])
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from keek.cli import main\n"
        f"raise SystemExit(main(['videos', 'import', {str(file)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "pip install 'keek[parquet]'" in done.stderr
    assert "Traceback" not in done.stderr
