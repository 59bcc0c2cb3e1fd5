"""Whether an ONNX file keeps a tower's contract; needs neither Keras nor TensorFlow."""

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import helper

from keek_server.errors import SetupError
from keek_server.towers.contract import TensorSpec, TowerContract


def check_contract(path: Path, contract: TowerContract) -> None:
    """Checks names, dtypes and shapes of a tower's inputs and output.

    Raises:
        SetupError: In one line, what is wrong and what was expected.
    """
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (OSError, ValueError, DecodeError) as error:
        raise SetupError(f"{path} is no ONNX model: {error}") from error
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    _compare(path, "input", inputs, contract.inputs)
    _compare(path, "output", list(graph.output), (contract.output,))


def _compare(
    path: Path, role: str, found: list[onnx.ValueInfoProto], expected: tuple[TensorSpec, ...]
) -> None:
    names = {value.name for value in found}
    wanted = {spec.name for spec in expected}
    if names != wanted:
        raise SetupError(f"{path}: {role}s are {sorted(names)}, expected {sorted(wanted)}")
    for spec in expected:
        value = next(value for value in found if value.name == spec.name)
        if not _fits(value, spec):
            raise SetupError(f"{path}: {role} {spec.name} is {_describe(value)}, expected {_expected(spec)}")


def _fits(value: onnx.ValueInfoProto, spec: TensorSpec) -> bool:
    tensor = value.type.tensor_type
    dimensions = [d.dim_value or -1 for d in tensor.shape.dim]
    return tensor.elem_type == helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)) and dimensions == [
        -1,
        *spec.shape,
    ]


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else "untyped"
    return f"{dtype} {[d.dim_value or -1 for d in tensor.shape.dim]}"


def _expected(spec: TensorSpec) -> str:
    return f"{np.dtype(spec.dtype)} {[-1, *spec.shape]}"
