"""What exported files look like, and what is refused."""

import argparse
import csv
import io
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pyarrow.parquet as pq
import pytest

from keek_server.clock import us_iso
from keek_server.commands import add_export_arguments
from keek_server.errors import SetupError
from keek_server.interactions.csv_lines import CSV_HEADER, CSV_HEADER_WATCHED, csv_line, csv_line_watched
from keek_server.interactions.export import ExportedInteraction
from keek_server.interactions.export_files import PARQUET_SCHEMA, open_export
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets import prototype

MOMENT_US = 1_700_000_000_000_001
AWKWARD = ["a,b", 'say "hi"', "two\nlines", "one\rtwo", "ü 🎬", "a\u2028b", "'", "=1+1", "a\tb"]


def _row(user_id: str = "u1", kind: int = 2, watched_ms: int | None = None) -> ExportedInteraction:
    event_id = UUID("01890000-0000-7000-8000-0000000000ab")
    return ExportedInteraction(
        *(7, event_id, user_id, "v1", kind, MOMENT_US, MOMENT_US + 5, "de", ["a", "b,c"], watched_ms)
    )


def test_a_line_is_spelled_as_the_prototype_did() -> None:
    assert CSV_HEADER == "user_id,video_id,action,timestamp\n"
    assert csv_line("u1", "v1", InteractionKind.LIKE, MOMENT_US) == (
        "u1,v1,like,2023-11-14T22:13:20.000001Z\n"
    )


@pytest.mark.parametrize("time_us", [0, 1, 1_700_000_000_000_000, MOMENT_US, 253_402_300_799_999_999])
def test_times_are_exact_and_read_as_iso_8601(time_us: int) -> None:
    text = us_iso(time_us)
    assert len(text) == len("2023-11-14T22:13:20.000001Z")
    moment = datetime.fromisoformat(text)
    assert moment.tzinfo == UTC
    assert (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() == pytest.approx(time_us / 1e6)
    assert text.endswith(f".{time_us % 1_000_000:06d}Z")


@pytest.mark.parametrize("kind", InteractionKind)
def test_every_kind_is_read_back(kind: InteractionKind, tmp_path: Path) -> None:
    (tmp_path / "videos.csv").write_text("video_id,tags,duration,owner\nv1,,,\n")
    (tmp_path / "interaction_log.csv").write_text(CSV_HEADER + csv_line("u1", "v1", kind, MOMENT_US))
    assert prototype.read(tmp_path).interactions["kind"].to_pylist() == [kind]


@pytest.mark.parametrize("text", AWKWARD)
def test_ids_of_every_kind_are_read_back_by_csv_readers_and_by_our_own(text: str, tmp_path: Path) -> None:
    written = CSV_HEADER + csv_line(text, text, InteractionKind.VIEW, MOMENT_US)
    (row,) = csv.DictReader(io.StringIO(written, newline=""))
    assert (row["user_id"], row["video_id"]) == (text, text)
    (tmp_path / "interaction_log.csv").write_bytes(written.encode())
    with (tmp_path / "videos.csv").open("w", newline="") as videos:
        csv.writer(videos).writerows([["video_id", "tags", "duration", "owner"], [text, "", "", ""]])
    dataset = prototype.read(tmp_path)
    assert dataset.problems == []
    assert [tuple(row.values()) for row in dataset.interactions.to_pylist()] == [
        (text, text, InteractionKind.VIEW, MOMENT_US)
    ]


def test_a_csv_may_say_how_long_videos_were_watched(tmp_path: Path) -> None:
    out = tmp_path / "interaction_log.csv"
    with open_export("csv", str(out), watched=True) as write:
        write([_row(), _row("u,2", 1, 12_500), _row("u3", 5, 0)])
    lines = [
        csv_line_watched("u1", "v1", 2, MOMENT_US, None),
        csv_line_watched("u,2", "v1", 1, MOMENT_US, 12_500),
        csv_line_watched("u3", "v1", 5, MOMENT_US, 0),
    ]
    assert out.read_text() == CSV_HEADER_WATCHED + "".join(lines)
    read = list(csv.DictReader(io.StringIO(out.read_text(), newline="")))
    assert [(row["user_id"], row["watched_s"]) for row in read] == [
        ("u1", ""),
        ("u,2", "12.5"),
        ("u3", "0.0"),
    ]
    (tmp_path / "videos.csv").write_text("video_id,tags,duration,owner\nv1,,,\n")
    assert prototype.read(tmp_path).interactions["watched_ms"].to_pylist() == [None, 12_500, 0]


def test_parquet_has_every_column(tmp_path: Path) -> None:
    out = tmp_path / "log.parquet"
    with open_export("parquet", str(out)) as write:
        write([_row()])
        write([])
        write([_row("u2", 1, 12_500)])
    table = pq.read_table(out)
    assert table.schema == PARQUET_SCHEMA
    assert table.slice(0, 1).to_pylist() == [
        {
            "seq": 7,
            "event_id": "01890000-0000-7000-8000-0000000000ab",
            "user_id": "u1",
            "video_id": "v1",
            "kind": "like",
            "event_time": datetime(2023, 11, 14, 22, 13, 20, 1, UTC),
            "record_time": datetime(2023, 11, 14, 22, 13, 20, 6, UTC),
            "region": "de",
            "tags": ["a", "b,c"],
            "watched_s": None,
        }
    ]
    assert table["user_id"].to_pylist() == ["u1", "u2"]
    assert table["watched_s"].to_pylist() == [None, 12.5]


@pytest.mark.parametrize("format_", ["csv", "parquet"])
def test_an_export_that_fails_leaves_the_file_as_it_was(tmp_path: Path, format_: str) -> None:
    out = tmp_path / "log"
    out.write_text("before")

    def fail() -> None:
        with open_export(format_, str(out)) as write:  # type: ignore[arg-type]
            write([_row()])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("log", "before")]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with open_export("csv", str(tmp_path / "link")):
        pass
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == CSV_HEADER


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    for format_, out, reason in (
        ("parquet", "-", "standard output takes csv alone"),
        ("csv", str(tmp_path), "it is no file"),
        ("csv", str(tmp_path / "no" / "log.csv"), r"cannot write to .*log\.csv: No such file"),
    ):
        with pytest.raises(SetupError, match=reason), open_export(format_, out):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize(
    ("text", "time_us"),
    [
        ("2023-11-14T22:13:20.000001Z", MOMENT_US),
        ("2023-11-14T23:13:20.000001+01:00", MOMENT_US),
        ("2023-11-14T22:13:20.000001", MOMENT_US),
        ("1970-01-02", 86_400_000_000),
    ],
)
def test_since_is_iso_8601(text: str, time_us: int) -> None:
    assert _parse("--since", text, "--out", "x").since == time_us


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--since", "tomorrow", "--out", "x"], "'tomorrow' is no time: ISO 8601 is expected"),
        (["--format", "xml", "--out", "x"], "invalid choice: 'xml'"),
        ([], "the following arguments are required: --out"),
    ],
)
def test_a_wrong_option_is_a_usage_error(
    words: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _parse(*words)
    assert fault in capsys.readouterr().err


def _parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_export_arguments(parser)
    return parser.parse_args(words)
