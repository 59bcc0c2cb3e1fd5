"""What the command line prints."""

import json

import pytest

import keek
from keek.cli.output import Table, print_json, printable, source_name


def test_columns_are_aligned_and_numbers_stand_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    Table("#", "VIDEO", "SCORE").add([(9, "v1", 0.5), (10, "longer", 12.25), (11, "v", 1.25e-5)])
    out = capsys.readouterr().out
    assert out == " #  VIDEO      SCORE\n 9  v1           0.5\n10  longer     12.25\n11  v       1.25e-05\n"


def test_further_rows_stand_under_the_same_header(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("VIDEO", "OWNER")
    table.add([("v1", "o1")])
    table.add([])
    table.add([("v2", "o2")])
    assert capsys.readouterr().out == "VIDEO  OWNER\nv1     o1\nv2     o2\n"


def test_a_table_without_rows_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Table("VIDEO").add([])
    assert capsys.readouterr().out == ""


def test_json_has_the_proto_field_names_and_fields_at_their_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_json(keek.FeedItem(video_id="vé", source=keek.FeedSource.FEED_SOURCE_TRENDING))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "vé" in out
    assert json.loads(out) == {
        "video_id": "vé",
        "source": "FEED_SOURCE_TRENDING",
        "score": 0.0,
        "release_id": "",
        "arm": "",
    }


def test_what_would_move_the_cursor_or_break_the_line_is_not_printed() -> None:
    assert printable("a\x1b[2Jb\nc\u202ed é") == "a\ufffd[2Jb\ufffdc\ufffdd é"


def test_a_source_newer_than_the_client_shows_its_number() -> None:
    assert source_name(keek.FeedSource.FEED_SOURCE_POPULAR) == "popular"
    newer = keek.FeedItem(source=99)  # type: ignore[arg-type]
    assert source_name(newer.source) == "99"
