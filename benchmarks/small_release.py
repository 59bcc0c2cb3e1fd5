"""A small release for a benchmark, really trained, exported and published, in a directory of its own."""

import os
from collections.abc import Sequence
from pathlib import Path

from keek_training.demo.processes import run_command

_ROOT = Path(__file__).parents[1]
# Long ago: nothing trends but what a benchmark makes trend.
_DATA = "synth:videos=600,users=300,interactions=15000,seed=5,end=2024-01-01"


def publish_small_release(directory: Path, clip: Sequence[str] | None = None) -> None:
    """Publishes it, and names the directory in the environment, for every command from here on.

    Args:
        directory: Gets the data directory and the model repository.
        clip: Options of `keek-train export-clip`; no CLIP when None.
    """
    repository = directory / "models"
    for config in (_ROOT / "model_repository").glob("*/config.pbtxt"):
        (repository / config.parent.name).mkdir(parents=True)
        (repository / config.parent.name / config.name).write_bytes(config.read_bytes())
    os.environ["KEEK_DATA_DIR"] = str(directory / "data")
    os.environ["KEEK_MODEL_REPOSITORY"] = str(repository)
    os.environ["KEEK_TRITON_ENVIRONMENT"] = str(_ROOT / ".venv-triton")
    configuration = directory / "train.json"
    configuration.write_text('{"epochs": 1, "jit": false}')
    run_command("keek-train", "import", _DATA)
    run_command("keek-train", "train", "--run", "small", "--config", str(configuration))
    run_command("keek-train", "export", "--run", "small")
    if clip is not None:
        run_command("keek-train", "export-clip", *clip)
    run_command("keek-train", "publish", "--run", "small")
