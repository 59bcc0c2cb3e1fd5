"""Which files of a folder are videos, and under which video_id."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keek.cli.importing.folder import video_files, video_id_of


def test_video_files_are_found_below_a_folder_in_order(tmp_path: Path) -> None:
    for name in ("b/c.mp4", "a.MKV", "b/d/e.webm", "notes.txt", ".hidden.mp4", ".git/x.mp4", "mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"abc")
    os.utime(tmp_path / "a.MKV", ns=(5, 7))
    found = video_files(tmp_path)
    assert [each.key[0] for each in found] == ["a.MKV", "b/c.mp4", "b/d/e.webm"]
    assert found[0].key == ("a.MKV", 3, 7)
    assert found[1].path == tmp_path / "b" / "c.mp4"


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        video_files(tmp_path / "none")


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        ("a.mp4", "a"),
        ("clips/2024/a.b.mp4", "clips/2024/a.b"),
        ("cafe\u0301.mp4", "caf\u00e9"),
        ("a\nb\x00.mp4", "a_b_"),
        (os.fsdecode(b"a\xff.mp4"), "a_"),
        ("e" * 128 + ".mp4", "e" * 128),
    ],
)
def test_a_video_id_is_the_path_without_its_extension(relative: str, expected: str) -> None:
    assert video_id_of(relative) == expected


@given(st.text(min_size=1, max_size=200).filter(lambda text: "/" not in text and text.strip(".")))
def test_every_path_gives_a_valid_video_id(name: str) -> None:
    video_id = video_id_of(f"clips/{name}.mp4")
    assert 0 < len(video_id.encode()) <= 128
    assert "\0" not in video_id


def test_long_paths_that_differ_at_their_end_have_different_ids() -> None:
    first, second = video_id_of("\u00e9" * 100 + "1.mp4"), video_id_of("\u00e9" * 100 + "2.mp4")
    assert first != second
    assert first.startswith("\u00e9" * 50)
    assert max(len(first.encode()), len(second.encode())) <= 128
