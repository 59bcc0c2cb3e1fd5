"""From a trained run to two ONNX files that keep the contract and answer as Keras does."""

import hashlib
import statistics
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from tqdm import tqdm

from keek_server.errors import SetupError
from keek_server.towers.contract import USER_TOWER, VIDEO_TOWER, TowerContract
from keek_server.towers.features import Float32Array, Tensors
from keek_training.backend import keras
from keek_training.config import TrainConfig
from keek_training.contract_check import check_contract
from keek_training.golden import golden_users, golden_videos
from keek_training.onnx_graph import with_layer_norms, without_flattening
from keek_training.runs import Run
from keek_training.sessions import open_session
from keek_training.towers import VideoTower, user_tower_of
from keek_training.weights import load_weights

PARITY_BOUND: Final = 1e-4
"""Largest difference between Keras and ONNX, in any element of any golden vector."""

_OPSET: Final = 17
_TIMED_RUNS: Final = 200


def export(run: Run) -> dict[str, Any]:
    """Exports both towers of a trained run and measures them.

    Returns:
        The report, also written as export.json: parity, ms a user, sizes, checksums.

    Raises:
        SetupError: When the run is not trained, Keras runs on another backend, or an exported tower breaks
            the contract or the parity bound; export.json is not written then.
    """
    run.read_metrics()
    if keras.backend.backend() != "tensorflow":
        raise SetupError(
            "ONNX is written by the TensorFlow backend: export with KERAS_BACKEND=tensorflow; "
            "a run's weights are plain arrays, whichever backend trained them"
        )
    config = TrainConfig.load(run.config)
    towers: dict[TowerContract, tuple[Any, Path]] = {
        USER_TOWER: (user_tower_of(config.towers, config.seed), run.user_tower),
        VIDEO_TOWER: (VideoTower(config.towers, config.seed), run.video_tower),
    }
    golden = {USER_TOWER: golden_users(config.towers.history_length), VIDEO_TOWER: golden_videos()}
    report: dict[str, Any] = {"history_length": config.towers.history_length, "opset": _OPSET}
    answers: dict[str, Any] = {}
    for contract, (tower, path) in tqdm(towers.items(), "exporting", unit="tower"):
        inputs = golden[contract]
        tower(inputs)  # makes the weights
        load_weights(tower, run.weights(contract.model))
        with run.writing(path) as aside:
            convert(tower, contract, aside)
            check_contract(aside, contract)
            expected = np.asarray(keras.ops.convert_to_numpy(tower(inputs)))
            worst = difference(aside, contract, inputs, expected)
        report[contract.model] = describe(path, worst)
        answers |= {f"{contract.model}/{name}": values for name, values in inputs.items()}
        answers[f"{contract.model}/{contract.output.name}"] = expected
    report["user_tower"]["ms_per_user"] = _ms_per_user(run.user_tower, config.towers.history_length)
    with run.writing(run.golden) as aside:
        np.savez(aside, **answers)
    run.write_export(report)
    return report


def convert(tower: Any, contract: TowerContract, path: Path) -> None:
    """Writes a model as ONNX, with the contract's names and shapes."""
    # Not before keek_training.backend, which sets TensorFlow's log level.
    import tensorflow as tf
    import tf2onnx

    names = [spec.name for spec in contract.inputs]
    signature = [
        tf.TensorSpec([None, *(None if d < 0 else d for d in spec.shape)], spec.dtype, name=spec.name)
        for spec in contract.inputs
    ]

    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def serve(*values: Any) -> dict[str, Any]:
        return {contract.output.name: tower(dict(zip(names, values, strict=True)), training=False)}

    model, _ = tf2onnx.convert.from_function(serve, input_signature=signature, opset=_OPSET)
    # What the container's ONNX Runtime reads too, and the dynamic shapes that the contract states.
    model.ir_version = min(model.ir_version, 9)
    without_flattening(model)
    with_layer_norms(model)
    _state_shapes(model, contract)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _state_shapes(model: onnx.ModelProto, contract: TowerContract) -> None:
    """Writes the contract's shape on the output, which shape inference may have left open."""
    for value in model.graph.output:
        if value.name == contract.output.name:
            dimensions = value.type.tensor_type.shape
            dimensions.ClearField("dim")
            dimensions.dim.add(dim_param="batch")
            for size in contract.output.shape:
                if size < 0:
                    dimensions.dim.add(dim_param=f"{contract.output.name}_length")
                else:
                    dimensions.dim.add(dim_value=size)


def difference(path: Path, contract: TowerContract, inputs: Tensors, expected: Float32Array) -> float:
    """The largest difference of any element between ONNX Runtime and Keras.

    Raises:
        SetupError: When it is above PARITY_BOUND.
    """
    (found,) = open_session(path, 1).run([contract.output.name], inputs)
    worst = float(np.max(np.abs(np.asarray(found) - expected)))
    # Written so that NaN is refused as well.
    if not worst <= PARITY_BOUND:
        raise SetupError(
            f"{contract.model}: ONNX and Keras differ by {worst:.1e}, at most {PARITY_BOUND:.0e} may be"
        )
    return worst


def describe(path: Path, worst: float) -> dict[str, Any]:
    """Of an exported file: how far it is from Keras, its size and checksum."""
    content = path.read_bytes()
    return {
        "max_abs_difference": worst,
        "size_bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _ms_per_user(path: Path, history_length: int) -> float:
    """Median time of one user with a full history, on one thread."""
    session = open_session(path, 1)
    inputs = {name: values[2:3] for name, values in golden_users(history_length).items()}
    times = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        session.run(None, inputs)
        times.append(time.perf_counter() - started)
    return round(statistics.median(times) * 1000, 4)
