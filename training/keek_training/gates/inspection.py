"""What an ONNX file says of itself, read without running anything and without opening another file."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, Message
from onnx import TensorProto, helper

from keek_server.towers.contract import TowerContract
from keek_training.contract_check import contract_problems

_LISTED = 3
_FLOATS: dict[int, np.dtype[Any]] = {
    TensorProto.FLOAT: np.dtype("<f4"),
    TensorProto.DOUBLE: np.dtype("<f8"),
    TensorProto.FLOAT16: np.dtype("<f2"),
}
_LONGEST_NAME = 120


@dataclass(slots=True)
class Inspection:
    """What was found; `problem` alone counts when the file is no ONNX model."""

    problem: str = ""
    """Why it is no ONNX model; empty when it is one."""
    external: list[str] = field(default_factory=list)
    """Tensors that lie in other files, with where."""
    opset: int = 0
    """Version of the standard operators that it asks for."""
    newest_opset: int = 0
    """The newest version that ONNX Runtime knows."""
    departures: list[str] = field(default_factory=list)
    """How it departs from the contract."""
    not_numbers: list[str] = field(default_factory=list)
    """Weights with NaN in them, which may be those of few ids. Infinity has its uses, as in masks."""

    @property
    def may_run(self) -> bool:
        """Whether it is worth loading."""
        faults = self.problem or self.external or self.departures or self.not_numbers
        return not faults and self.opset <= self.newest_opset


def inspect(content: bytes, contract: TowerContract) -> Inspection:
    """Reads a model's own words."""
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError:
        return Inspection("it is no ONNX model, or its end is missing")
    # Bytes of many kinds parse as a message that holds nothing known.
    if not (model.ir_version and model.HasField("graph") and model.graph.output and model.opset_import):
        return Inspection("it is no ONNX model, or its end is missing: graph, outputs or opset are not there")
    opsets = [each.version for each in model.opset_import if each.domain in ("", "ai.onnx")]
    return Inspection(
        external=_external_tensors(model),
        opset=max(opsets, default=0),
        newest_opset=newest_opset(),
        departures=contract_problems(model, contract),
        not_numbers=_first([_name(tensor) for tensor in _tensors(model) if _has_nan(tensor)]),
    )


def newest_opset() -> int:
    """The newest version of the standard operators that ONNX Runtime loads."""
    for opset in range(onnx.defs.onnx_opset_version(), 0, -1):
        try:
            session(identity_model(opset))
        except Exception:  # noqa: BLE001, S112 - ONNX Runtime has classes for nothing of this
            continue
        return opset
    raise RuntimeError("ONNX Runtime loads no model at all")


def identity_model(opset: int) -> bytes:
    """A model that answers what it is given."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "identity", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(model.SerializeToString())


def session(content: bytes, *, optimised: bool = True) -> onnxruntime.InferenceSession:
    """A session on one thread: it starts none, so that a closed process can hold it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _external_tensors(model: onnx.ModelProto) -> list[str]:
    found = []
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            places = [entry.value for entry in tensor.external_data if entry.key == "location"]
            found.append(f"{_name(tensor)} in {', '.join(places)[:_LONGEST_NAME]!r}")
    return _first(found)


def _name(tensor: TensorProto) -> str:
    return repr(tensor.name[:_LONGEST_NAME])


def _first(found: list[str]) -> list[str]:
    return [*found[:_LISTED], *([f"{len(found) - _LISTED} more"] if len(found) > _LISTED else [])]


def _has_nan(tensor: TensorProto) -> bool:
    dtype = _FLOATS.get(int(tensor.data_type))
    if dtype is None:
        return False
    if tensor.raw_data:
        # Of a length that does not fit, ONNX Runtime will have something to say.
        whole = len(tensor.raw_data) // dtype.itemsize
        return bool(np.isnan(np.frombuffer(tensor.raw_data, dtype, whole)).any())
    return bool(np.isnan(tensor.float_data).any() or np.isnan(tensor.double_data).any())


def _tensors(message: Message) -> Iterator[TensorProto]:
    """All tensors, wherever they stand: weights, attributes, bodies of loops, functions."""
    waiting = [message]
    while waiting:
        one = waiting.pop()
        if isinstance(one, TensorProto):
            yield one
            continue
        for descriptor, value in one.ListFields():
            if descriptor.message_type is None:
                continue
            waiting.extend([value] if isinstance(value, Message) else value)
