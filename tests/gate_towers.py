"""Small towers that keep the contract and pass the gates, and ways to break them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from keek_server.towers.contract import (
    CLIP_DIMENSION,
    DIMENSION,
    RANKER,
    RANKING_FEATURES,
    USER_TOWER,
    VIDEO_TOWER,
    TowerContract,
)
from keek_training.gates.examine import Limits
from keek_training.publishing.source import TowerSource

ONNX_TYPES = {np.int32: TensorProto.INT32, np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16}
RNG = np.random.default_rng(5)
CLIP_WEIGHTS = RNG.normal(size=(CLIP_DIMENSION, DIMENSION)).astype(np.float32) / 8
ID_TABLE = RNG.normal(size=(97, DIMENSION)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class PatientLimits(Limits):
    """Whoever takes too much processor time gets the time to, whatever else the machine has to do."""

    @property
    def wall_s(self) -> float:
        return 250.0


def model_of(
    contract: TowerContract,
    nodes: Sequence[NodeProto],
    weights: dict[str, npt.NDArray[Any]],
    *,
    opset: int = 17,
    dimension: int | str = DIMENSION,
) -> ModelProto:
    """A model with the contract's inputs and output."""
    inputs = [
        helper.make_tensor_value_info(
            spec.name,
            ONNX_TYPES[spec.dtype],
            ["batch", *(dim if dim > 0 else f"{spec.name}_length" for dim in spec.shape)],
        )
        for spec in contract.inputs
    ]
    output = helper.make_tensor_value_info(contract.output.name, TensorProto.FLOAT, ["batch", dimension])
    constants = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(list(nodes), contract.model, inputs, [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def user_tower(
    weights: npt.NDArray[np.float32] | None = None, extra: Sequence[NodeProto] = (), **options: Any
) -> ModelProto:
    """The sum of the history's vectors times a matrix, float32 [DIMENSION, n]; `extra` maps `vector` to
    `user_vector` when given."""
    matrix = np.eye(DIMENSION, dtype=np.float32) if weights is None else weights
    nodes = [
        helper.make_node("ReduceSum", ["history_vectors", "one"], ["sum"], keepdims=0),
        helper.make_node("MatMul", ["sum", "matrix"], ["vector" if extra else "user_vector"]),
        *extra,
    ]
    return model_of(USER_TOWER, nodes, {"matrix": matrix, "one": np.int64([1])}, **options)


def video_tower(
    table: npt.NDArray[np.float32] = ID_TABLE,
    clip: npt.NDArray[np.float32] = CLIP_WEIGHTS,
    extra: Sequence[NodeProto] = (),
    **options: Any,
) -> ModelProto:
    """A row of a table by the video's id, plus the clip vector times a matrix; `extra` as above."""
    nodes = [
        helper.make_node("Gather", ["video", "zero"], ["hash"], axis=1),
        helper.make_node("Mod", ["hash", "rows"], ["row"]),
        helper.make_node("Gather", ["table", "row"], ["by_id"]),
        helper.make_node("Cast", ["clip_vector"], ["clip"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["clip", "matrix"], ["by_clip"]),
        helper.make_node("Add", ["by_id", "by_clip"], ["vector" if extra else "video_vector"]),
        *extra,
    ]
    weights = {
        "table": table,
        "matrix": clip,
        "zero": np.array(0, np.int64),
        "rows": np.array(len(table), np.int32),
    }
    return model_of(VIDEO_TOWER, nodes, weights, **options)


def ranker(weights: Sequence[float] = (-1.0,)) -> ModelProto:
    """A sum of the first features, each times a weight; by default it turns the dot product's order round."""
    column = np.zeros((len(RANKING_FEATURES), 1), np.float32)
    column[: len(weights), 0] = weights
    nodes = [
        helper.make_node("MatMul", ["features", "column"], ["sums"]),
        helper.make_node("Squeeze", ["sums", "last"], ["whole"]),
        helper.make_node("Mul", ["whole", "mask"], ["masked"]),
        # Inputs that nothing reads are none.
        *_nothing_of("user_vector", [1]),
        *_nothing_of("video_vectors", [1, 2]),
        helper.make_node("Sum", ["masked", "nothing_of_user_vector", "nothing_of_video_vectors"], ["scores"]),
    ]
    constants = {"column": column, "last": np.int64([-1]), "zero_float": np.float32(0.0)}
    return model_of(RANKER, nodes, constants, dimension="candidates")


def _nothing_of(name: str, axes: list[int]) -> list[NodeProto]:
    return [
        helper.make_node("ReduceMean", [name], [f"mean_of_{name}"], axes=axes, keepdims=0),
        helper.make_node("Mul", [f"mean_of_{name}", "zero_float"], [f"flat_of_{name}"]),
        helper.make_node("Unsqueeze", [f"flat_of_{name}", "last"], [f"nothing_of_{name}"]),
    ]


def slow(loops: int) -> ModelProto:
    """A user tower that multiplies matrices for a while first."""
    width = 256
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "noise"], ["more"]),
            helper.make_node("Clip", ["more", "low", "high"], ["next"]),
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [width, width]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [width, width]),
        ],
    )
    extra = [
        helper.make_node("Loop", ["loops", "", "noise"], ["busy"], body=body),
        helper.make_node("ReduceMean", ["busy"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["none"]),
        helper.make_node("Add", ["vector", "none"], ["user_vector"]),
    ]
    model = user_tower(extra=extra)
    noise = np.random.default_rng(0).normal(size=(width, width)).astype(np.float32)
    scalars = {
        "low": np.float32(-1),
        "high": np.float32(1),
        "nothing": np.float32(0),
        "loops": np.int64(loops),
    }
    for name, values in {"noise": noise, **scalars}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return model


def tag_tower(table: npt.NDArray[np.float32]) -> ModelProto:
    """The sum of rows of a table, by the video's tags, normalised; the id adds next to nothing."""
    nodes = [
        helper.make_node("Mod", ["tags", "rows"], ["row"]),
        helper.make_node("Gather", ["table", "row"], ["by_tag"]),
        helper.make_node("Cast", ["tags"], ["there"], to=TensorProto.BOOL),
        helper.make_node("Cast", ["there"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["masks"]),
        helper.make_node("Mul", ["by_tag", "masks"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["sum"], keepdims=0),
        helper.make_node("Gather", ["video", "zero"], ["hash"], axis=1),
        helper.make_node("Mod", ["hash", "rows"], ["id"]),
        helper.make_node("Gather", ["table", "id"], ["by_id"]),
        helper.make_node("Mul", ["by_id", "little"], ["own"]),
        helper.make_node("Add", ["sum", "own"], ["all"]),
        helper.make_node("LpNormalization", ["all"], ["video_vector"], axis=1),
    ]
    weights: dict[str, npt.NDArray[Any]] = {
        "table": table,
        "rows": np.array(len(table), np.int32),
        "last": np.int64([-1]),
        "one": np.int64([1]),
        "zero": np.array(0, np.int64),
        "little": np.float32([0.05]),
    }
    return model_of(VIDEO_TOWER, nodes, weights)


def written(folder: Path, users: ModelProto | bytes, videos: ModelProto | bytes) -> TowerSource:
    """The two as files that an engineer brings."""
    paths = folder / "users.onnx", folder / "videos.onnx"
    for path, content in zip(paths, (users, videos), strict=True):
        path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return TowerSource.of_files(*paths, history_length=20)
