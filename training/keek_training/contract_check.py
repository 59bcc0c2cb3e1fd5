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
        model = onnx.load(str(path), load_external_data=False)
    except (OSError, ValueError, DecodeError) as error:
        raise SetupError(f"{path} is no ONNX model: {error}") from error
    if problems := contract_problems(model, contract):
        raise SetupError(f"{path}: {problems[0]}")


def contract_problems(model: onnx.ModelProto, contract: TowerContract) -> list[str]:
    """How a model departs from the contract: one line each, what is and what was expected."""
    graph = model.graph
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    return [
        *_problems("input", inputs, contract.inputs),
        *_problems("output", list(graph.output), (contract.output,)),
    ]


def _problems(role: str, found: list[onnx.ValueInfoProto], expected: tuple[TensorSpec, ...]) -> list[str]:
    names = sorted(value.name for value in found)
    wanted = sorted(spec.name for spec in expected)
    if names != wanted:
        return [f"{role}s are {names}, expected {wanted}"]
    values = {value.name: value for value in found}
    return [
        f"{role} {spec.name} is {_describe(values[spec.name])}, expected {_expected(spec)}"
        for spec in expected
        if not _fits(values[spec.name], spec)
    ]


def _fits(value: onnx.ValueInfoProto, spec: TensorSpec) -> bool:
    tensor = value.type.tensor_type
    wanted = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    return tensor.elem_type == wanted and _shape(value) == [-1, *spec.shape]


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    """-1 where a dimension is free."""
    return [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]


def _describe(value: onnx.ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        return "no tensor"
    return f"{_dtype(value.type.tensor_type.elem_type)} {_shape(value)}"


def _dtype(elem_type: int) -> str:
    try:
        return str(np.dtype(helper.tensor_dtype_to_np_dtype(elem_type)))
    except (KeyError, ValueError, TypeError):
        return "untyped"


def _expected(spec: TensorSpec) -> str:
    return f"{np.dtype(spec.dtype)} {[-1, *spec.shape]}"
