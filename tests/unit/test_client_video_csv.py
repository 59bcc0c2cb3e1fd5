"""Videos from CSV: good lines are read, bad ones reported with their number."""

from pathlib import Path

import pytest

import keek
from keek.cli.importing.csv_file import read_videos
from keek.cli.importing.rows import Line, Malformed, Row, Unread

HEADER = "video_id,tags,duration,owner\n"


def _read(path: Path, text: str | bytes) -> list[Line]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(read_videos(path))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "videos.csv"


def test_a_line_of_the_prototypes_layout_is_a_video(file: Path) -> None:
    video = keek.Video(video_id="v1", tags=["cats", "funny dogs"], duration_s=12.5, owner_id="o1")
    assert _read(file, HEADER + "v1,cats|funny dogs,12.5,o1\n") == [Row(2, video)]


def test_columns_are_found_by_name_with_title_and_time(file: Path) -> None:
    rows = _read(file, "title,video_id,create_time\nOne,v1,2024-05-01T10:00:00+02:00\n")
    expected = keek.Video(video_id="v1", title="One")
    expected.create_time.FromJsonString("2024-05-01T08:00:00Z")
    assert rows == [Row(2, expected)]


def test_language_and_region_are_read_where_they_are_given(file: Path) -> None:
    rows = _read(file, "region,video_id,language\nBR,v1, pt-BR\n,v2,\n")
    given = keek.Video(video_id="v1", language="pt-BR", region="BR")
    assert rows == [Row(2, given), Row(3, keek.Video(video_id="v2"))]


def test_the_contracts_own_names_of_columns_are_taken(file: Path) -> None:
    video = keek.Video(video_id="v1", duration_s=12.5, owner_id="o1")
    assert _read(file, "video_id,owner_id,duration_s\nv1,o1,12.5\n") == [Row(2, video)]


def test_columns_that_are_not_read_are_named(file: Path) -> None:
    rows = _read(file, "video_id,likes,Owner\nv1,3,o1\n")
    assert rows == [Unread(("likes", "Owner")), Row(2, keek.Video(video_id="v1"))]


def test_a_column_that_is_there_twice_is_an_error(file: Path) -> None:
    [row] = _read(file, "video_id,owner,owner_id\nv1,o1,o2\n")
    assert row == Malformed(1, "the header has column owner twice")


def test_a_time_without_a_zone_is_utc(file: Path) -> None:
    [row] = _read(file, "video_id,create_time\nv1,2024-05-01 10:00:00\n")
    assert isinstance(row, Row)
    assert row.video.create_time.ToJsonString() == "2024-05-01T10:00:00Z"


@pytest.mark.parametrize("tags", ["a|b", "a;b", '"a,b"', ' "a, b"', "a | b|a", '"[""a"", ""b""]"'])
def test_tags_are_separated_in_any_of_three_ways_or_a_json_list(file: Path, tags: str) -> None:
    [row] = _read(file, f"video_id,tags\nv1,{tags}\n")
    assert isinstance(row, Row)
    assert list(row.video.tags) == ["a", "b"]


def test_missing_values_are_unknown(file: Path) -> None:
    assert _read(file, HEADER + "v1,,,\n") == [Row(2, keek.Video(video_id="v1"))]


def test_byte_order_mark_windows_line_ends_quotes_and_empty_lines_do_not_matter(file: Path) -> None:
    text = b'\xef\xbb\xbfvideo_id, "title"\r\n\r\nv1,"a ""quoted"", title"\r\n   \r\nv2,b'
    first, second = keek.Video(video_id="v1", title='a "quoted", title'), keek.Video(video_id="v2", title="b")
    assert _read(file, text) == [Row(3, first), Row(5, second)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("v1,a,1", "3 columns where 4 are expected"),
        ("v1,a,1,o,x", "5 columns where 4 are expected"),
        (",a,1,o", "video_id is empty"),
        ("v1,a,long,o", "duration 'long' is not a number of seconds"),
        ("v1,a,nan,o", "duration 'nan' is not a number of seconds"),
        ("v1,a,inf,o", "duration 'inf' is not a number of seconds"),
        ('"v1,a,1,o', "unexpected end of data"),
        ('"v1"x,a,1,o', "',' expected after '\"'"),
        (b"v\xff,a,1,o", "not valid UTF-8"),
        ("v1,[a],1,o", "tags '[a]' are not a JSON list of strings"),
        ("v1,[1],1,o", "tags '[1]' are not a JSON list of strings"),
    ],
)
def test_a_malformed_line_is_reported_and_the_others_are_read(
    file: Path, line: str | bytes, reason: str
) -> None:
    raw = line if isinstance(line, bytes) else line.encode()
    rows = _read(file, HEADER.encode() + b"v0,,,\n" + raw + b"\nv9,,,\n")
    assert rows == [
        Row(2, keek.Video(video_id="v0")),
        Malformed(3, reason),
        Row(4, keek.Video(video_id="v9")),
    ]


def test_a_malformed_time_is_reported(file: Path) -> None:
    [row] = _read(file, "video_id,create_time\nv1,yesterday\n")
    assert row == Malformed(2, "create_time 'yesterday' is not an ISO 8601 time")


@pytest.mark.parametrize("text", ["", "id,tags\nv1,a\n", "\nvideo_id\nv1\n"])
def test_a_file_without_its_header_is_reported_once(file: Path, text: str) -> None:
    assert _read(file, text) == [Malformed(1, "the header has no column video_id")]


def test_a_column_of_files_is_read_beside_the_metadata(file: Path) -> None:
    rows = _read(file, "video_id,file\nv1, clips/a.mp4\nv2,\n")
    v1, v2 = keek.Video(video_id="v1"), keek.Video(video_id="v2")
    assert rows == [Row(2, v1, "clips/a.mp4"), Row(3, v2, "")]


def test_lines_that_are_done_are_passed_over_also_when_they_are_bad(file: Path) -> None:
    file.write_text("video_id,tags\nv1,a\nv2\nv3,a\n")
    assert [row[0] for row in read_videos(file, done={2, 3})] == [4]
