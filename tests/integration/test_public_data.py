"""`keek-train train --data DIR` on the folders of public data sets: one part of them, or everything."""

import argparse
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from public_data import LOG_END_MS, write_kuairand, write_movielens, write_tiktok

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_server.settings import Settings
from keek_training.commands import add_arguments, run_export
from keek_training.config import TrainConfig
from keek_training.evaluation.commands import add_arguments as add_evaluation_arguments
from keek_training.evaluation.commands import run_evaluate
from keek_training.evaluation.public import ALL, TRAINING, recognise
from keek_training.run_data import open_data, read_training_data
from keek_training.runs import Run
from keek_training.train_command import add_train_arguments, run_train

# TensorFlow and Keras warn about themselves while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CONFIG = """\
towers: {history_length: 8, blocks: 1, feed_forward: 16, content_width: 16}
epochs: 3
fit_epochs: 2
validation_users: 10
"""


def _parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers(required=True)
    add_train_arguments(subparsers)
    add_arguments(subparsers)
    add_evaluation_arguments(subparsers)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("write", "name", "training", "everything"),
    [
        (write_kuairand, "kuairand-pure", 20 * 13, 20 * 16),
        (write_movielens, "ml-1m", 20 * 7, 20 * 8),
        (write_tiktok, "tiktok", 30 * 4, 30 * 5),
    ],
)
def test_a_folder_is_recognised_by_its_files(
    write: object, name: str, training: int, everything: int, tmp_path: Path
) -> None:
    assert callable(write)
    data = recognise(write(tmp_path))
    assert data.name == name
    part, whole = data.read(TRAINING), data.read(ALL)
    assert part.interactions.num_rows == training
    assert whole.interactions.num_rows == everything
    assert whole.videos["video_id"].to_pylist() == part.videos["video_id"].to_pylist()
    split = data.protocol().split
    assert split.training.interactions.equals(part.interactions)
    held = set(zip(split.targets.user_ids.to_pylist(), split.targets.video_ids.to_pylist(), strict=True))
    rows = whole.interactions
    pairs = set(zip(rows["user_id"].to_pylist(), rows["video_id"].to_pylist(), strict=True))
    assert held <= pairs


def test_all_of_kuairand_ends_with_the_later_impressions_at_their_own_times(tmp_path: Path) -> None:
    rows = recognise(write_kuairand(tmp_path)).read(ALL).interactions.to_pylist()
    own = [row for row in rows if row["user_id"] == "3"]
    last = [(row["kind"], row["event_time_us"] // 1000 - LOG_END_MS - 86_400_000) for row in own[-3:]]
    assert last == [(InteractionKind.VIEW, 6), (InteractionKind.LIKE, 6), (InteractionKind.SKIP, 7)]


def test_what_is_no_public_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="name the format, as FORMAT:"):
        open_data(str(tmp_path))
    with pytest.raises(SetupError, match="no data set format"):
        open_data(str(tmp_path / "nothing"))
    with pytest.raises(SetupError, match="--fit is for the plain folder"):
        open_data(f"tiktok:{write_tiktok(tmp_path)}", ALL)
    with pytest.raises(SetupError, match="--fit needs --data"):
        run_train(_parsed("train", "--fit", "all"), Settings(data_dir=tmp_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kuairand(tmp_path_factory.mktemp("data") / "kuairand-pure")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    own = Settings(data_dir=tmp_path_factory.mktemp("public"))
    (own.data_dir / "config.yaml").write_text(CONFIG)
    return own


@pytest.fixture(scope="module")
def fitted(folder: Path, settings: Settings) -> Run:
    """Fitted on everything, and exported."""
    words = ["--data", str(folder), "--fit", "all", "--config", str(settings.data_dir / "config.yaml")]
    assert run_train(_parsed("train", "--run", "whole", *words), settings) == 0
    assert run_export(_parsed("export", "--run", "whole"), settings) == 0
    return Run.named("whole", settings)


def test_everything_is_fitted_for_as_many_passes_as_the_configuration_says(
    fitted: Run, folder: Path, settings: Settings
) -> None:
    metrics = fitted.read_metrics()
    assert (metrics["fit"], metrics["data_spec"]) == ("all", str(folder))
    assert (metrics["epochs"], metrics["interactions"]) == (2, 320)
    assert TrainConfig.load(fitted.config).validation_users == 0
    assert "ndcg@10" not in metrics
    again = read_training_data(fitted, None, settings)
    assert again.interactions.num_rows == 320
    moved = write_kuairand(settings.data_dir / "moved")
    assert read_training_data(fitted, str(moved), settings).interactions.num_rows == 320


def test_the_training_part_is_fitted_by_default_with_early_stopping(folder: Path, settings: Settings) -> None:
    words = ["--data", str(folder), "--config", str(settings.data_dir / "config.yaml")]
    assert run_train(_parsed("train", "--run", "part", *words), settings) == 0
    metrics = Run.named("part", settings).read_metrics()
    assert (metrics["fit"], metrics["interactions"]) == ("training", 260)
    assert metrics["epochs"] == 3
    assert metrics["validation_users"] == 10


def test_a_later_period_is_measured_with_the_plain_ids_of_the_files(
    fitted: Run, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later_ms = LOG_END_MS + 9 * 86_400_000
    known = {"user_id": [0, 1, 777], "video_id": [1, 2, 3], "timestamp": [later_ms, later_ms, later_ms]}
    pq.write_table(pa.table(known), tmp_path / "history.parquet")
    users = [0, 0, 1, 2, 777, 888]
    targets = {"user_id": users, "video_id": [3, 4, 5, 6, 7, 8], "timestamp": [later_ms + 1000] * 6}
    pq.write_table(pa.table(targets), tmp_path / "targets.parquet")
    words = ["--targets", str(tmp_path / "targets.parquet"), "--history", str(tmp_path / "history.parquet")]
    words += ["--run", fitted.name, "--baselines", "popular,markov", "--json"]
    capsys.readouterr()
    assert run_evaluate(_parsed("evaluate", *words), settings) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["new_users"] == 1
    assert result["targets_unknown"] == 0
    assert result["targets_before_known"] == 0
    assert result["targets"] + result["targets_seen"] == 6
    assert result["index"]["within_1_percent"]
