"""`keek-train tune`: trials on a validation part of the training, kept, continued, and the best as a file."""

import argparse
from pathlib import Path

import pytest
from public_data import write_kuairand, write_tiktok

from keek_server.errors import SetupError
from keek_server.settings import Settings
from keek_training.config import TrainConfig
from keek_training.evaluation.public import recognise
from keek_training.tune.commands import _split, add_arguments, run_tune

# TensorFlow and Keras warn about themselves while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CONFIG = """\
towers: {history_length: 4, blocks: 1, feed_forward: 16, content_width: 16}
epochs: 2
validation_users: 10
learning_rate: 0.002
"""
SPACE = """\
learning_rate: {low: 0.0005, high: 0.005, log: true}
towers.content_width: {choices: [16, 32]}
"""


def _parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser.add_subparsers(required=True))
    return parser.parse_args(["tune", *words])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    own = Settings(data_dir=tmp_path_factory.mktemp("tune"))
    (own.data_dir / "config.yaml").write_text(CONFIG)
    (own.data_dir / "space.yaml").write_text(SPACE)
    write_tiktok(own.data_dir / "tiktok")
    return own


def _words(settings: Settings) -> list[str]:
    own = settings.data_dir
    return [
        *("--data", str(own / "tiktok"), "--config", str(own / "config.yaml")),
        *("--space", str(own / "space.yaml")),
    ]


def test_a_search_keeps_its_trials_goes_on_and_writes_the_best(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    import optuna
    from optuna.trial import TrialState

    assert run_tune(_parsed(*_words(settings), "--trials", "2"), settings) == 0
    folder = settings.data_dir / "studies" / "latest"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["trial", "state", "ndcg@10", "recall@10"]
    assert len(lines) == 4
    url = f"sqlite:///{folder / 'study.db'}"
    study = optuna.load_study(study_name="study", storage=url)
    # The first is what the search is around.
    assert study.trials[0].params == {"learning_rate": 0.002, "towers.content_width": 16}
    assert study.trials[1].params != study.trials[0].params
    assert set(study.trials[0].intermediate_values) == {1, 2}
    killed = study.ask({"learning_rate": optuna.distributions.FloatDistribution(0.0005, 0.005, log=True)})
    capsys.readouterr()

    # A trial was running when the process ended: it is made again.
    assert run_tune(_parsed(*_words(settings), "--trials", "1"), settings) == 0
    study = optuna.load_study(study_name="study", storage=url)
    assert [own.state for own in study.trials[2:]] == [TrialState.FAIL, TrialState.COMPLETE]
    assert study.trials[3].params["learning_rate"] == killed.params["learning_rate"]

    best = TrainConfig.load(folder / "best.yaml")
    values = {
        "learning_rate": best.learning_rate,
        "towers.content_width": best.towers.content_width,
    }
    assert values == study.best_params
    assert best.fit_epochs == study.best_trial.user_attrs["best_epoch"]
    assert (best.validation_users, best.epochs, best.towers.history_length) == (10, 2, 4)
    with pytest.raises(SetupError, match="holds a search with another config"):
        run_tune(_parsed(*_words(settings), "--trials", "1", "--seed", "9"), settings)


def test_a_budget_that_is_too_small_for_a_trial_is_said(settings: Settings) -> None:
    with pytest.raises(SetupError, match="no trial came to its end"):
        run_tune(_parsed(*_words(settings), "--name", "short", "--budget-s", "0.1"), settings)
    with pytest.raises(SetupError, match="a search needs an end"):
        run_tune(_parsed(*_words(settings)), settings)
    with pytest.raises(SetupError, match="cannot name a search"):
        run_tune(_parsed(*_words(settings), "--name", "../x", "--trials", "1"), settings)


def test_a_public_set_is_tuned_without_the_targets_that_are_reported(
    tmp_path: Path, settings: Settings
) -> None:
    folder = write_kuairand(tmp_path)
    origin, part = _split(str(folder), settings)
    reported = recognise(folder).protocol().split
    assert origin == {"folder": str(folder)}
    held = set(zip(part.targets.user_ids.to_pylist(), part.targets.video_ids.to_pylist(), strict=True))
    whole = reported.training.interactions
    trained = set(zip(whole["user_id"].to_pylist(), whole["video_id"].to_pylist(), strict=True))
    assert held <= trained
    assert part.training.interactions.num_rows < whole.num_rows


def test_other_data_is_split_in_time(settings: Settings) -> None:
    _, part = _split("synth:users=30,videos=40,interactions=500,seed=3,end=2026-01-01", settings)
    assert part.name == "time"
    assert part.training.interactions.num_rows == 400
