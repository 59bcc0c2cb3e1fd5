"""Small towers that keep the contract, with answers that numpy can check, and a way to ask them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gate_towers import model_of
from onnx import ModelProto, TensorProto, helper, save
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import np_to_triton_dtype

from keek_server.towers.contract import CLIP_DIMENSION, DIMENSION, TowerContract

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

USER_TABLE = np.arange(8, dtype=np.float32)
"""The small user tower looks the two hashes up here; a hash of 8 or more is an error."""


def _row_sum(name: str) -> list[Any]:
    """[batch, n] of any type to `NAME_sum`, float32 [batch, 1]."""
    return [
        helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", [f"{name}_float", "one"], [f"{name}_sum"], keepdims=1),
    ]


def user_tower(contract: TowerContract, scale: float) -> ModelProto:
    """The mean of the history's vectors times `scale`, plus a sum over each other input."""
    nodes = [
        helper.make_node("ReduceMean", ["history_vectors"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("Mul", ["mean", "scale"], ["scaled"]),
        helper.make_node("Gather", ["table", "user"], ["user_values"]),
        *_row_sum("user_values"),
        *_row_sum("history_kinds"),
        *_row_sum("history_ages_s"),
        helper.make_node(
            "Sum",
            ["scaled", "user_values_sum", "history_kinds_sum", "history_ages_s_sum"],
            ["user_vector"],
        ),
    ]
    return model_of(
        contract, nodes, {"table": USER_TABLE, "scale": np.float32([scale]), "one": np.int64([1])}
    )


def video_tower(contract: TowerContract) -> ModelProto:
    """The start of the clip vector plus a sum over each other input."""
    parts = ("video", "owner", "tags", "duration_s")
    nodes = [
        helper.make_node("Slice", ["clip_vector", "start", "end", "one"], ["clip_start"]),
        helper.make_node("Cast", ["clip_start"], ["clip_float"], to=TensorProto.FLOAT),
        *(node for part in parts for node in _row_sum(part)),
        helper.make_node("Sum", ["clip_float", *(f"{part}_sum" for part in parts)], ["video_vector"]),
    ]
    return model_of(
        contract, nodes, {"start": np.int64([0]), "end": np.int64([DIMENSION]), "one": np.int64([1])}
    )


def publish(model: ModelProto, repository: Path, name: str, version: int) -> None:
    """Puts a version into the repository as a publisher does: aside, then renamed."""
    aside = repository / name / f"{version}.tmp"
    aside.mkdir()
    save(model, str(aside / "model.onnx"))
    aside.rename(repository / name / str(version))


def user_inputs(rng: np.random.Generator, batch: int, length: int) -> Tensors:
    """Inputs of the user tower for a batch of users with histories of one length."""
    return {
        "user": rng.integers(0, len(USER_TABLE), (batch, 2), np.int32),
        "history_vectors": rng.normal(size=(batch, length, DIMENSION)).astype(np.float32),
        "history_kinds": rng.integers(0, 6, (batch, length), np.int32),
        "history_ages_s": rng.uniform(0, 10, (batch, length)).astype(np.float32),
    }


def user_vectors(inputs: Tensors, scale: float) -> Array:
    """What the small user tower must answer."""
    rows = (USER_TABLE[inputs["user"]], inputs["history_kinds"], inputs["history_ages_s"])
    sums = sum(row.sum(axis=1, dtype=np.float32) for row in rows)
    return inputs["history_vectors"].mean(axis=1) * np.float32(scale) + sums[:, None]


def video_inputs(rng: np.random.Generator, batch: int, tags: int) -> Tensors:
    """Inputs of the video tower; the integers are small enough to be exact as float32."""
    return {
        "video": rng.integers(-1000, 1000, (batch, 2), np.int32),
        "owner": rng.integers(-1000, 1000, (batch, 2), np.int32),
        "tags": rng.integers(0, 1000, (batch, tags), np.int32),
        "duration_s": rng.uniform(0, 60, (batch, 1)).astype(np.float32),
        "clip_vector": rng.normal(size=(batch, CLIP_DIMENSION)).astype(np.float16),
    }


def video_vectors(inputs: Tensors) -> Array:
    """What the small video tower must answer."""
    parts = ("video", "owner", "tags", "duration_s")
    sums = sum(inputs[part].sum(axis=1, dtype=np.float32) for part in parts)
    return inputs["clip_vector"][:, :DIMENSION].astype(np.float32) + sums[:, None]


async def infer(
    client: InferenceServerClient, model: str, inputs: Tensors, output: str, version: int | str = ""
) -> Array:
    """One call; raises tritonclient's InferenceServerException when it fails."""
    tensors = []
    for name, array in inputs.items():
        tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    result = await client.infer(
        model,
        tensors,
        model_version=str(version),
        outputs=[InferRequestedOutput(output)],
        client_timeout=30.0,
    )
    answer: Array = result.as_numpy(output)
    return answer
