"""Which files of a folder are videos, and under which video_id."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keek.cli.importing.folder import NOT_TAKEN, SUFFIXES, video_files, video_id_of
from keek.cli.importing.table import _below
from keek_server.errors import BadMediaError
from keek_server.videos.decoding.sniff import sniff_video


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


def test_what_is_no_regular_file_or_no_video_that_the_server_takes_is_found_with_its_problem(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "clips"
    (folder / "b.mp4").mkdir(parents=True)
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (folder / "a.mp4").write_bytes(b"abc")
    (folder / "c.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "d.mp4").symlink_to("nothing")
    (folder / "e.mp4").symlink_to("e.mp4")
    (folder / "f").symlink_to(tmp_path)
    os.mkfifo(folder / "g.mp4")
    (folder / "h.WMV").write_bytes(b"abc")
    found = video_files(folder)
    link = "is a symbolic link, which is not followed"
    assert {each.key[:2]: each.problem for each in found} == {
        ("a.mp4", 3): "",
        ("c.mp4", 0): link,
        ("d.mp4", 0): link,
        ("e.mp4", 0): link,
        ("g.mp4", 0): "is not a regular file",
        ("h.WMV", 0): "the server takes no .wmv",
    }


def _iso(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand


HEADS = {
    ".mp4": _iso(b"isom"),
    ".m4v": _iso(b"M4V "),
    ".mov": _iso(b"qt  "),
    ".3gp": _iso(b"3gp4"),
    ".3g2": _iso(b"3g2a"),
    ".webm": b"\x1a\x45\xdf\xa3\x9fB\x82\x84webm",
    ".mkv": b"\x1a\x45\xdf\xa3\x9fB\x82\x88matroska",
    ".avi": b"RIFF\0\0\0\0AVI LIST",
    ".ts": (b"\x47" + bytes(187)) * 4,
    ".mts": (bytes(4) + b"\x47" + bytes(187)) * 4,
    ".m2ts": (bytes(4) + b"\x47" + bytes(187)) * 4,
}


def test_the_server_takes_every_kind_of_file_that_a_folder_import_sends() -> None:
    assert set(HEADS) == SUFFIXES
    for head in HEADS.values():
        sniff_video(head)
    for head in (b"FLV\x01\x05", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"OggS", b"\0\0\1\xba", b".RMF"):
        with pytest.raises(BadMediaError, match="taken are"):
            sniff_video(head)
    assert {".flv", ".wmv", ".asf", ".ogv", ".mpg", ".mpeg", ".rm"} <= NOT_TAKEN
    assert not NOT_TAKEN & SUFFIXES


# -- a table's column `file` ----------------------------------------------------------------------
@pytest.mark.parametrize("file", ["a.mp4", "sub/../a.mp4", "sub/inside.mp4", "none.mp4"])
def test_a_file_below_a_tables_folder_may_be_sent(tmp_path: Path, file: str) -> None:
    _table_folder(tmp_path)
    assert _below(tmp_path / "table", file).is_relative_to(tmp_path.resolve() / "table")


@pytest.mark.parametrize(
    "file", ["../secret.mp4", "link.mp4", "sub/out/secret.mp4", "sub/out/../secret.mp4", "/etc/hostname"]
)
def test_a_file_elsewhere_may_not_be_sent_by_whatever_way_a_table_names_it(tmp_path: Path, file: str) -> None:
    _table_folder(tmp_path)
    with pytest.raises(ValueError, match="is not below the folder"):
        _below(tmp_path / "table", file)


def _table_folder(path: Path) -> None:
    (path / "table" / "sub").mkdir(parents=True)
    (path / "table" / "a.mp4").write_bytes(b"a")
    (path / "table" / "sub" / "inside.mp4").symlink_to("../a.mp4")
    (path / "secret.mp4").write_bytes(b"secret")
    (path / "table" / "link.mp4").symlink_to("../secret.mp4")
    (path / "table" / "sub" / "out").symlink_to(path)


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
