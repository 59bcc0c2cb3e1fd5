"""What `keek-server index` prints and draws."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from manifests import bare_manifest

from keek_server.errors import SetupError
from keek_server.index_commands import add_arguments, run
from keek_server.index_report import bench_curves, print_bench, print_tune, tune_curves
from keek_server.releases.queries import halves, queries_of, user_vectors
from keek_server.releases.release import VIDEO_COLUMNS, Audience, Corpus, Release
from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.fresh import VECTORS
from keek_server.retrieval.ids import IdTable
from keek_server.retrieval.index import Vectors
from keek_server.retrieval.kinds import MainKind
from keek_server.retrieval.plots import Point, check_plot, draw_plot, text_plot
from keek_server.settings import Settings

RNG = np.random.default_rng(1)
VIDEOS = RNG.normal(size=(400, 64)).astype(np.float32)


def numbers(recall: float, p50_ms: float) -> dict[str, float]:
    return {
        "recall": recall,
        "recall_error": 0.0011,
        "p50_ms": p50_ms,
        "p99_ms": 2 * p50_ms,
        "speedup_vs_exact": 8.0,
        "batch_vs_single": 1.5,
    }


BENCH: dict[str, Any] = {
    "release": "r1",
    "videos": 100_000,
    "kind": "ivf_fp16",
    "nlist": 1264,
    "rerank": 0,
    "k": 100,
    "queries": 500,
    "query_source": "users",
    "queries_unseen": False,
    "exact_p50_ms": 16.0,
    "efforts": [
        {"effort": 38, "is_tuned": False, **numbers(0.95, 0.5)},
        {"effort": 77, "is_tuned": True, **numbers(0.99, 2.0)},
    ],
    "depths": [{"depth": 100, "effort": 77, "recall": 0.99}],
}
TUNE: dict[str, Any] = {
    "release": "r1",
    "videos": 100_000,
    "k": 100,
    "tuned_with": 256,
    "queries": 500,
    "recall_target": 0.99,
    "memory_mib": None,
    "planned": "ivf_fp16",
    "exact_p50_ms": 16.0,
    "kinds": [
        {
            "kind": kind,
            "is_chosen": kind == "ivf_sq8",
            "mib": 7.25,
            "build_s": 8.5,
            "nlist": 1264,
            "effort": 75,
            "rerank": 2,
            **numbers(0.991, 0.25),
            "efforts": [{"effort": 75, "is_tuned": True, **numbers(0.991, 0.25)}],
        }
        for kind in ("ivf_fp16", "ivf_sq8")
    ],
    "chosen": "ivf_sq8",
}


def columns(line: str) -> list[str]:
    return line.split()


def test_a_bench_is_a_table_of_efforts_and_one_of_depths(capsys: pytest.CaptureFixture[str]) -> None:
    print_bench(BENCH)
    head, source, _, header, lower, tuned, _, depth_header, depth, _ = capsys.readouterr().out.splitlines()
    assert head == "release r1: 100,000 videos, ivf_fp16, 1,264 lists, rerank 0"
    assert "500 queries (users, some of which it was tuned to); exact search takes 16 ms" in source
    assert header.split("  ")[0] == "TUNED"
    assert columns(lower) == ["38", "0.9500", "0.0011", "0.5", "1", "8", "1.5"]
    assert columns(tuned) == ["*", "77", "0.9900", "0.0011", "2", "4", "8", "1.5"]
    assert header.index("RECALL@100") == lower.index("0.9500") == tuned.index("0.9900")
    assert (columns(depth_header), columns(depth)) == (["DEPTH", "EFFORT", "RECALL"], ["100", "77", "0.9900"])


def test_a_tuning_marks_the_best_kind_and_says_which_settings_choose_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_tune(TUNE)
    text = capsys.readouterr().out
    (marked,) = (line for line in text.splitlines() if line.startswith("*  "))
    assert columns(marked)[1:8] == ["ivf_sq8", "7.25", "8.5", "1264", "75", "2", "0.9910"]
    assert "  KEEK_INDEX_KIND=ivf_sq8 KEEK_INDEX_RECALL_TARGET=0.99\n" in text
    assert "(as it is set now, a publish builds ivf_fp16)" in text
    print_tune(TUNE | {"memory_mib": 8})
    assert "KEEK_INDEX_RECALL_TARGET=0.99 KEEK_INDEX_MEMORY_MIB=8\n" in capsys.readouterr().out
    print_tune(TUNE | {"memory_mib": 8, "chosen": None})
    text = capsys.readouterr().out
    assert (
        "none of these reaches a recall of 0.99 within 8 MiB; as it is set now, a publish builds ivf_fp16"
        in text
    )
    assert "KEEK_INDEX_KIND" not in text


def test_the_text_plot_has_recall_upwards_and_the_logarithm_of_the_latency_to_the_right() -> None:
    top, *rows, bottom, axis, ends, legend = text_plot(bench_curves(BENCH)).splitlines()[1:]
    # 0.5, 2 and 16 ms: 2 lies at two fifths. The exact search's recall of 1 is the highest.
    assert top == "1.0000 |" + 67 * " " + "B"
    assert bottom == "0.9500 |a"
    (tuned,) = (line for line in rows if "A" in line)
    assert tuned.index("A") - len("0.0000 |") == round(67 * 2 / 5)
    assert 0.988 < float(tuned.split()[0]) < 0.992
    assert (axis.strip(), ends.split()) == ("+" + 68 * "-", ["0.5", "16", "ms"])
    assert legend == "a ivf_fp16, b exact search; capitals: as tuned"


def test_a_plot_of_one_point_is_a_plot() -> None:
    assert text_plot({"exact": [Point(1.0, 1.0, True)]}).count("A") == 1


def test_the_picture_has_a_curve_a_kind(tmp_path: Path) -> None:
    check_plot(tmp_path / "plot.svg")
    for name, start in (("plot.svg", b"<?xml"), ("plot.png", b"\x89PNG")):
        draw_plot(tune_curves(TUNE), "release r1", tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)


def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SetupError, match=r"no folder .*absent for the plot"):
        check_plot(tmp_path / "absent" / "plot.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SetupError, match=r"the plot cannot be written: .*Is a directory"):
        draw_plot(bench_curves(BENCH), "release r1", tmp_path / "folder.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SetupError, match=r"needs matplotlib: install keek\[training\]"):
        check_plot(tmp_path / "plot.png")


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "--k", "0"],
        ["bench", "--queries", "few"],
        ["bench", "--plot", "plot.pdf"],
        ["bench", "--kinds", "exact"],
        ["tune", "--kinds", "exact_fp16"],
        ["tune", "--recall", "1.1"],
        ["tune", "--recall", "nan"],
        ["tune", "--memory-mib", "-1"],
        [],
    ],
)
def test_what_makes_no_sense_is_a_usage_error(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(words)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def release_with(
    folder: Path, users: Vectors | None, kind: MainKind = "exact", tuned_to: int = 40
) -> Release:
    """Of 400 videos, its index tuned to the first `tuned_to` users."""
    manifest = bare_manifest("r1")
    index, report = build_index(VIDEOS, VIDEOS[:tuned_to], IndexOptions(0, 0.9, kind="exact"))
    index.save(folder / "index.faiss")
    user_report = None
    if users is not None:
        user_index, user_report = build_index(users, VIDEOS[:50], IndexOptions(0, 0.9, kind=kind))
        Audience(IdTable.build([f"u{i}" for i in range(len(users))]), user_index).save(folder)
    columns = {name: np.zeros((400, *column.shape), column.dtype) for name, column in VIDEO_COLUMNS.items()}
    columns[VECTORS] = VIDEOS
    Corpus.build([f"v{i}" for i in range(400)], columns, np.ones(400, np.int64)).save(folder)
    manifest.model_copy(update={"index": report, "user_index": user_report}).save(folder)
    return Release.open(folder)


@pytest.mark.parametrize("kind", ["exact", "ivf_flat"])
def test_users_ask_that_the_index_was_not_tuned_to(tmp_path: Path, kind: MainKind) -> None:
    users = RNG.normal(size=(100, 64)).astype(np.float32)
    release = release_with(tmp_path, users, kind)
    np.testing.assert_array_equal(user_vectors(tmp_path), users)
    queries = queries_of(release, users, 50)
    assert (queries.source, queries.unseen) == ("users", True)
    np.testing.assert_array_equal(queries.vectors, users[40:90])


def test_where_there_are_few_others_all_users_ask(tmp_path: Path) -> None:
    users = RNG.normal(size=(60, 64)).astype(np.float32)
    queries = queries_of(release_with(tmp_path, users), users, 500)
    assert (len(queries.vectors), queries.source, queries.unseen) == (60, "users", False)


def test_where_there_are_next_to_no_users_videos_ask(tmp_path: Path) -> None:
    release = release_with(tmp_path, None)
    users = user_vectors(tmp_path)
    assert users.shape == (0, 64)
    queries = queries_of(release, users, 30)
    assert (queries.vectors.shape, queries.source) == ((30, 64), "videos")
    assert {row.tobytes() for row in queries.vectors} <= {row.tobytes() for row in VIDEOS}


async def test_a_release_without_users_is_measured_with_a_warning_and_not_tuned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data_dir=tmp_path)
    folder = settings.release_dir / "r1"
    folder.mkdir(parents=True)
    release_with(folder, None)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    await run(parser.parse_args(["bench", "r1", "--rounds", "1", "--queries", "20"]), settings)
    captured = capsys.readouterr()
    assert "release r1 holds 0 users, too few to ask: some of its videos ask in their place" in captured.err
    assert "recall@100 of 20 queries (videos); exact search takes" in captured.out
    with pytest.raises(SetupError, match=r"holds 0 users, and 64 are needed"):
        await run(parser.parse_args(["tune", "r1"]), settings)


@pytest.mark.parametrize(
    ("settings", "words", "planned"),
    [
        ({}, [], "exact"),
        ({"index_exact_below": 10}, ["--memory-mib", "1"], "ivf_fp16"),
        ({"index_exact_below": 10, "index_kind": "hnsw"}, ["--recall", "0.5"], "hnsw"),
    ],
)
async def test_a_tuning_says_what_the_settings_alone_would_build(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    settings: dict[str, Any],
    words: list[str],
    planned: str,
) -> None:
    own = Settings(data_dir=tmp_path, **settings)
    folder = own.release_dir / "r1"
    folder.mkdir(parents=True)
    release_with(folder, RNG.normal(size=(80, 64)).astype(np.float32))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = ["tune", "r1", "--rounds", "1", "--json", "--kinds", "exact", *words]
    await run(parser.parse_args(given), own)
    found = json.loads(capsys.readouterr().out)
    assert (found["planned"], found["chosen"]) == (planned, "exact")


def test_some_users_tune_and_others_measure() -> None:
    users = np.arange(3000 * 64, dtype=np.float32).reshape(3000, 64)
    tuning, asking = halves(users, 300)
    assert (len(tuning), len(asking)) == (1024, 300)
    assert not set(tuning[:, 0].tolist()) & set(asking[:, 0].tolist())
    tuning, asking = halves(users[:64], 300)
    assert (len(tuning), len(asking)) == (32, 32)
    with pytest.raises(SetupError, match=r"holds 63 users, and 64 are needed"):
        halves(users[:63], 300)
