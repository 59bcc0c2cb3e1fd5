"""`keek-train train`: what its options come to."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from keek_server.settings import Settings
from keek_training import train_run
from keek_training.config import TrainConfig
from keek_training.train_command import add_train_arguments, run_train

# TensorFlow and Keras warn about themselves while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

DATA = "synth:users=10,videos=20,interactions=100,seed=3,end=2026-01-01"


@pytest.mark.parametrize("option", ["seed", "epochs"])
def test_an_option_of_0_is_as_good_as_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    configs: list[TrainConfig] = []

    def not_trained(_data: object, config: TrainConfig, *_: Any, **__: Any) -> dict[str, Any]:
        configs.append(config)
        return {}

    monkeypatch.setattr(train_run, "train_run", not_trained)
    parser = argparse.ArgumentParser()
    add_train_arguments(parser.add_subparsers(required=True))
    run_train(parser.parse_args(["train", "--data", DATA, f"--{option}", "0"]), Settings(data_dir=tmp_path))
    assert [getattr(config, option) for config in configs] == [0]
