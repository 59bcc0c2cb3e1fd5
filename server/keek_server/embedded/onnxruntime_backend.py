"""Triton's `onnxruntime` backend in Python: runs `model.onnx` with ONNX Runtime.

Triton loads this file as `backends/onnxruntime/model.py` (keek_server.embedded.triton puts it
there), in a process of its own for each model instance, inside Triton's environment: numpy,
onnxruntime and `triton_python_backend_utils` are all there is. It serves the same
repository as the C++ backend of that name does in Triton's container.
"""

import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import triton_python_backend_utils as pb_utils
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

Array = npt.NDArray[Any]

TRITON_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}
"""ONNX Runtime's name of each tensor type that can be served, and Triton's."""

RUN_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    MemoryError,
    RuntimeError,
    ValueError,
)
"""What a run may raise because of its inputs; ONNX Runtime's errors share no base of their own."""

ROWS_PER_CORE = 512
"""Fewest rows of a batch that are worth a core of their own."""


class TritonPythonModel:
    """One instance of one version of a model; Triton calls the methods, one at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the session and checks it against `config.pbtxt`.

        Raises:
            TritonModelException: the model is not what its configuration says; the load fails.
        """
        config = json.loads(args["model_config"])
        file_name = config.get("default_model_filename") or "model.onnx"
        path = Path(args["model_repository"]) / args["model_version"] / file_name
        self._batching = int(config.get("max_batch_size", 0)) > 0
        self._session = open_session(path, config, args)
        self._cores = usable_cores(config, self._session) if self._batching else 1
        self._pool = ThreadPoolExecutor(self._cores, "rows")
        problems = [*input_problems(config, self._session), *output_problems(config, self._session)]
        if problems:
            raise pb_utils.TritonModelException(f"{path} does not fit config.pbtxt: {'; '.join(problems)}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers requests, as many in one run as can share one: response i is for request i."""
        calls = [Call(request) for request in requests]
        if self._batching:
            for group in grouped(calls):
                self._answer(group)
        else:
            for call in calls:
                self._answer([call])
        return [call.response for call in calls]

    def finalize(self) -> None:
        """Frees the model's memory."""
        self._pool.shutdown()
        del self._session

    def _answer(self, calls: Sequence["Call"]) -> None:
        """Runs calls together; when that fails, each by itself, so that only the culprits fail."""
        names = list(dict.fromkeys(name for call in calls for name in call.outputs))
        try:
            outputs = self._run(names, concatenated(calls))
            split_outputs(calls, dict(zip(names, outputs, strict=True)))
        except RUN_ERRORS as error:
            if len(calls) == 1:
                calls[0].response = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
                return
            for call in calls:
                self._answer([call])

    def _run(self, names: Sequence[str], inputs: dict[str, Array]) -> list[Array]:
        """Runs a batch; a large one on all cores, each with rows of its own.

        That is faster than ONNX Runtime's own threads, which share the work of every small
        operator, and takes less memory than instances, which each hold the model.
        """
        rows = next(iter(inputs.values())).shape[0]
        cores = min(self._cores, rows // ROWS_PER_CORE)
        if cores < 2:
            outputs: list[Array] = self._session.run(names, inputs)
            return outputs
        parts = self._pool.map(lambda part: self._session.run(names, part), sliced(inputs, rows, cores))
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


class Call:
    """One request: its inputs, the outputs it asks for, and its response once there is one."""

    def __init__(self, request: Any) -> None:
        self.inputs: dict[str, Array] = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        self.outputs: list[str] = list(request.requested_output_names())
        self.rows = next(iter(self.inputs.values())).shape[0]
        self.response: Any = None

    @property
    def shapes(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """The inputs' shapes without the batch dimension: calls that share them can share a run."""
        return tuple(sorted((name, array.shape[1:]) for name, array in self.inputs.items()))

    def answer(self, outputs: dict[str, Array]) -> None:
        """Sets the response to the outputs that were asked for."""
        tensors = [pb_utils.Tensor(name, outputs[name]) for name in self.outputs]
        self.response = pb_utils.InferenceResponse(output_tensors=tensors)


def grouped(calls: Sequence[Call]) -> Iterable[list[Call]]:
    """Calls that can run as one batch, together."""
    if len(calls) == 1:
        return [[calls[0]]]
    groups: dict[Any, list[Call]] = {}
    for call in calls:
        groups.setdefault(call.shapes, []).append(call)
    return groups.values()


def concatenated(calls: Sequence[Call]) -> dict[str, Array]:
    """The calls' inputs as one batch."""
    if len(calls) == 1:
        return calls[0].inputs
    return {name: np.concatenate([call.inputs[name] for call in calls]) for name in calls[0].inputs}


def split_outputs(calls: Sequence[Call], outputs: dict[str, Array]) -> None:
    """Gives each call its rows of a batch's outputs."""
    if len(calls) == 1:
        calls[0].answer(outputs)
        return
    ends = np.cumsum([call.rows for call in calls])
    for name, array in outputs.items():
        if array.shape[0] != ends[-1]:
            raise ValueError(f"output {name} has {array.shape[0]} rows for a batch of {ends[-1]}")
    for call, end in zip(calls, ends, strict=True):
        call.answer({name: array[end - call.rows : end] for name, array in outputs.items()})


def sliced(inputs: dict[str, Array], rows: int, parts: int) -> list[dict[str, Array]]:
    """A batch in parts of nearly the same number of rows."""
    ends = [rows * part // parts for part in range(parts + 1)]
    return [{name: array[start:end] for name, array in inputs.items()} for start, end in pairwise(ends)]


def usable_cores(config: dict[str, Any], session: onnxruntime.InferenceSession) -> int:
    """Cores that one batch may be spread over; one where a GPU or ONNX Runtime's threads do that."""
    if session.get_providers() != ["CPUExecutionProvider"] or intra_op_threads(config) != 1:
        return 1
    return len(os.sched_getaffinity(0))


def intra_op_threads(config: dict[str, Any]) -> int:
    """ONNX Runtime's threads for one run.

    Instances and versions run side by side, so each keeps to one thread. The parameter is the
    one that the C++ backend reads, so a config.pbtxt means the same to both.
    """
    return int(config.get("parameters", {}).get("intra_op_thread_count", {}).get("string_value", "1"))


def open_session(path: Path, config: dict[str, Any], args: dict[str, str]) -> onnxruntime.InferenceSession:
    """The model, on the device that Triton gave this instance, as far as ONNX Runtime can use it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads(config)
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = True
    # Threads that spin while they wait take the cores from whatever else runs on this machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=providers(args))


def providers(args: dict[str, str]) -> list[Any]:
    """CUDA for an instance on a GPU where this ONNX Runtime has it, and always the CPU."""
    cuda = "CUDAExecutionProvider"
    if args["model_instance_kind"] == "GPU" and cuda in onnxruntime.get_available_providers():
        return [(cuda, {"device_id": int(args["model_instance_device_id"])}), "CPUExecutionProvider"]
    return ["CPUExecutionProvider"]


def input_problems(config: dict[str, Any], session: onnxruntime.InferenceSession) -> Iterable[str]:
    """What is wrong with the inputs, for people; nothing when they are as configured."""
    served = {entry["name"]: entry for entry in config.get("input", [])}
    present = {node.name: node for node in session.get_inputs()}
    for name in present.keys() - served.keys():
        yield f"the model reads an input {name} that is not configured"
    for name, entry in served.items():
        yield from tensor_problems(f"input {name}", entry, present.get(name), config)


def output_problems(config: dict[str, Any], session: onnxruntime.InferenceSession) -> Iterable[str]:
    """What is wrong with the outputs; the model may have more than are configured."""
    present = {node.name: node for node in session.get_outputs()}
    for entry in config.get("output", []):
        yield from tensor_problems(f"output {entry['name']}", entry, present.get(entry["name"]), config)


def tensor_problems(what: str, entry: dict[str, Any], node: Any, config: dict[str, Any]) -> Iterable[str]:
    """Compares one configured tensor with the model's own; a free dimension fits any."""
    if node is None:
        yield f"the model has no {what}"
        return
    if TRITON_TYPES.get(node.type) != entry["data_type"]:
        yield f"{what} is {node.type}, not {entry['data_type']}"
    dims = [int(dim) for dim in entry["dims"]]
    expected = [-1, *dims] if int(config.get("max_batch_size", 0)) > 0 else dims
    # Named and unknown dimensions are free: strings and None.
    actual = [dim if isinstance(dim, int) else -1 for dim in node.shape]
    fits = len(actual) == len(expected) and all(
        -1 in (have, want) or have == want for have, want in zip(actual, expected, strict=True)
    )
    if not fits:
        yield f"{what} has shape {actual}, not {expected}"
