"""A training that is killed goes on from its last epoch, to the result that it would have come to."""

import argparse
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from keek_server.errors import SetupError
from keek_server.settings import Settings
from keek_training.checkpoints import Checkpoints, read_meta
from keek_training.runs import Run
from keek_training.train_command import add_train_arguments, run_train

# TensorFlow and Keras warn about themselves while they are imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    # Several trainings a test, which a busy machine makes slowly.
    pytest.mark.timeout(900),
]

CONFIG = """\
towers: {history_length: 8, blocks: 1, feed_forward: 16, content_width: 16}
epochs: 12
average: 0.9
patience: 12
validation_users: 20
"""
DATA = "synth:users=60,videos=120,interactions=2400,seed=3,end=2026-01-01"
ENDS_WITHIN_S = 400.0
KILLED = """
import os, signal
from keek_training.__main__ import main
from keek_training.checkpoints import Checkpoints

save = Checkpoints.save

def killed(self, *rest):
    # The third epoch is done, and not safe yet.
    if self.saved_epochs == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, *rest)

Checkpoints.save = killed
main()
"""


def _parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_train_arguments(parser.add_subparsers(required=True))
    return parser.parse_args(["train", *words])


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    own = Settings(data_dir=tmp_path_factory.mktemp("resume"))
    (own.data_dir / "config.yaml").write_text(CONFIG)
    return own


def _words(settings: Settings, run: str) -> list[str]:
    return ["--run", run, "--data", DATA, "--config", str(settings.data_dir / "config.yaml")]


@pytest.fixture(scope="module")
def uninterrupted(settings: Settings) -> Run:
    assert run_train(_parsed(*_words(settings, "whole")), settings) == 0
    return Run.named("whole", settings)


def _killed_in_the_third_epoch(settings: Settings, name: str) -> int:
    """Epochs that the checkpoint has, of a training that got one further."""
    program = [sys.executable, "-c", KILLED, "train", *_words(settings, name)]
    environment = os.environ | {"KEEK_DATA_DIR": str(settings.data_dir)}
    done = subprocess.run(
        program, env=environment, stderr=subprocess.PIPE, text=True, timeout=ENDS_WITHIN_S, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return len(read_meta(Run.named(name, settings))["history"])


def test_what_was_killed_ends_as_if_it_had_not_been(uninterrupted: Run, settings: Settings) -> None:
    assert not uninterrupted.checkpoint.exists()
    assert _killed_in_the_third_epoch(settings, "killed") == 2
    run = Run.named("killed", settings)
    assert not run.is_trained
    assert run_train(_parsed("--resume", "--run", "killed"), settings) == 0
    assert not run.checkpoint.exists()
    histories = [json.loads((own.folder / "history.json").read_text()) for own in (uninterrupted, run)]
    losses, again = ([epoch["loss"] for epoch in history] for history in histories)
    assert again == pytest.approx(losses, rel=1e-5)
    assert len(set(losses)) == 12
    for tower in ("user_tower", "video_tower"):
        with np.load(uninterrupted.weights(tower)) as whole, np.load(run.weights(tower)) as own:
            for name in whole.files:
                np.testing.assert_allclose(own[name], whole[name], atol=1e-4, err_msg=name)
    metrics, other = run.read_metrics(), uninterrupted.read_metrics()
    for name in ("best_epoch", "epochs", "data_spec"):
        assert metrics[name] == other[name]


def test_it_says_what_it_cannot_go_on_from(settings: Settings, uninterrupted: Run) -> None:
    with pytest.raises(SetupError, match="run 'whole' has no checkpoint"):
        run_train(_parsed("--resume", "--run", uninterrupted.name), settings)
    with pytest.raises(SetupError, match="leave out --epochs"):
        run_train(_parsed("--resume", "--epochs", "3"), settings)
    with pytest.raises(SetupError, match="leave out --from"):
        run_train(_parsed("--resume", "--from", "whole"), settings)
    broken = Run.named("broken", settings)
    broken.start()
    broken.checkpoint.write_bytes(b"nothing")
    with pytest.raises(SetupError, match="is no checkpoint"):
        run_train(_parsed("--resume", "--run", "broken"), settings)


def test_a_stop_says_how_to_go_on_and_an_earlier_run_stays_until_then(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert run_train(_parsed(*_words(settings, "stopped"), "--epochs", "1"), settings) == 0
    run = Run.named("stopped", settings)
    save = Checkpoints.save

    def stop_after_two(self: Checkpoints, *rest: object) -> None:
        save(self, *rest)  # type: ignore[arg-type]
        if self.saved_epochs == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        run_train(_parsed(*_words(settings, "stopped")), settings)
    assert "2 epochs are safe; keek-train train --resume --run stopped goes on" in caplog.text
    assert run.read_metrics()["epochs"] == 1
    monkeypatch.undo()
    meta = read_meta(run)
    other = DATA.replace("seed=3", "seed=4")
    content = dict(np.load(run.checkpoint))
    changed = meta | {"origin": {"data_spec": other}}
    np.savez(run.checkpoint, **(content | {"meta": np.array(json.dumps(changed))}))
    with pytest.raises(SetupError, match="is of other data than there is now"):
        run_train(_parsed("--resume", "--run", "stopped"), settings)
    np.savez(run.checkpoint, **content)
    assert run_train(_parsed("--resume", "--run", "stopped"), settings) == 0
    assert run.read_metrics()["epochs"] == 12
    assert not run.checkpoint.exists()
