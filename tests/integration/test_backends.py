"""Training on other backends of Keras, on several devices and in half precision, beside TensorFlow on one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keek_server.errors import SetupError

# TensorFlow and Keras warn about themselves while they are imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    # Two devices of one busy CPU wait for each other.
    pytest.mark.timeout(900),
]

PROGRAM = Path(__file__).parent.parent / "training_steps.py"
CLOSE = 1e-4
"""Of the losses of the first step, and of the second, which the first one's gradients have moved."""
ALIKE = 1e-3
"""Later ones: AdamW's first steps are as large for a gradient that is nothing but rounding."""

needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")


def _losses(weights: Path, *, backend: str, devices: int = 1, precision: str = "float32") -> list[float]:
    """Of some steps from the same weights, in a process of their own."""
    environment = os.environ | {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    if devices > 1:
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    program = [sys.executable, str(PROGRAM), str(weights), str(devices), precision]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backends") / "weights"


@pytest.fixture(scope="module")
def expected(weights: Path) -> list[float]:
    """By TensorFlow on one device."""
    losses = _losses(weights, backend="tensorflow")
    assert len(set(losses)) == len(losses) == 3
    return losses


@needs_jax
def test_jax_makes_the_steps_that_tensorflow_makes(expected: list[float], weights: Path) -> None:
    losses = _losses(weights, backend="jax")
    assert losses[:2] == pytest.approx(expected[:2], rel=CLOSE)
    assert losses == pytest.approx(expected, rel=ALIKE)


@needs_jax
def test_two_devices_make_the_steps_that_one_makes(expected: list[float], weights: Path) -> None:
    losses = _losses(weights, backend="jax", devices=2)
    assert losses[:2] == pytest.approx(expected[:2], rel=CLOSE)
    assert losses == pytest.approx(expected, rel=ALIKE)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_makes_about_the_same_steps(
    expected: list[float], weights: Path, precision: str
) -> None:
    losses = _losses(weights, backend="tensorflow", precision=precision)
    assert losses == pytest.approx(expected, rel=1e-2)
    assert losses != pytest.approx(expected, rel=1e-7)


def test_several_devices_need_jax() -> None:
    from keek_training.devices import spread_over

    with spread_over(1):
        pass
    with pytest.raises(SetupError, match="needs the JAX backend"):
        spread_over(2)


def test_what_fills_a_batch_up_weighs_nothing() -> None:
    from keek_training.devices import padded

    batch = {
        "weights": np.ones(3, np.float32),
        "videos": np.ones((4, 2), np.int32),
        "log_expected": np.zeros(5, np.float32),
    }
    found = padded(batch, 2)
    assert found["weights"].tolist() == [1, 1, 1, 0]
    assert found["videos"] is batch["videos"]
    assert found["log_expected"][-1] == 1e9
    assert found["weights"].dtype == np.float32
