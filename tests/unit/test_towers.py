"""The towers: what trains is what serves, and what an exported file must look like."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from keek_server.errors import SetupError
from keek_server.towers.contract import USER_TOWER, VIDEO_TOWER
from keek_training.config import TowerConfig
from keek_training.contract_check import check_contract
from keek_training.golden import golden_users, golden_videos

# TensorFlow and Keras warn about themselves while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LENGTH = 12


@pytest.fixture(
    scope="module",
    params=[{}, {"age_bias": False}, {"encoder": "ridge"}],
    ids=["ages", "no ages", "ridge"],
)
def config(request: pytest.FixtureRequest) -> TowerConfig:
    buckets = dict.fromkeys(("video_buckets", "owner_buckets", "tag_buckets", "user_buckets"), 64)
    return TowerConfig(history_length=LENGTH, longest_age_s=1e7, **buckets, **request.param)


@pytest.fixture(scope="module")
def user_tower(config: TowerConfig) -> Any:
    """With biases that are not zero, as after training."""
    from keek_training.towers import user_tower_of

    tower, rng = user_tower_of(config, 1), np.random.default_rng(2)
    tower(golden_users(LENGTH))
    for weight in tower.trainable_variables:
        if "bias" in weight.path or "decay" in weight.path:
            weight.assign(rng.normal(size=weight.shape))
    return tower


def test_the_served_vector_is_the_last_of_those_that_train(user_tower: Any) -> None:
    inputs = golden_users(LENGTH)
    served = np.asarray(user_tower(inputs))
    trained = np.asarray(user_tower.every_position(inputs))
    np.testing.assert_allclose(served, trained[:, -1], atol=1e-5)


def test_padding_changes_nothing(user_tower: Any) -> None:
    short = {name: values[:1] for name, values in golden_users(LENGTH).items()}
    short = {name: values[:, -3:] if name != "user" else values for name, values in short.items()}
    short["history_kinds"] = np.array([[1, 2, 3]], np.int32)
    padded = {
        name: np.pad(values, [(0, 0), (5, 0)] + [(0, 0)] * (values.ndim - 2)) if name != "user" else values
        for name, values in short.items()
    }
    np.testing.assert_allclose(np.asarray(user_tower(short)), np.asarray(user_tower(padded)), atol=1e-5)


def test_no_position_sees_a_later_one(user_tower: Any) -> None:
    inputs = golden_users(LENGTH)
    before = np.asarray(user_tower.every_position(inputs))
    changed = inputs["history_vectors"].copy()
    changed[:, -4:] = 7.0
    after = np.asarray(user_tower.every_position(inputs | {"history_vectors": changed}))
    np.testing.assert_allclose(before[:, :-4], after[:, :-4], atol=1e-5)
    assert np.abs(before[:, -4:] - after[:, -4:]).max() > 1e-3


def test_attention_weighs_a_key_by_how_far_back_it_is() -> None:
    from keek_training.attention import CausalAttention
    from keek_training.layers import MASKED

    attention = CausalAttention(2, 3, age_bias=False, name="attention")
    keys = np.random.default_rng(1).normal(size=(1, 5, 64)).astype(np.float32)
    nothing = np.zeros((1, 5), np.float32)
    attention(keys, keys, None, nothing)
    table = np.array([[1, 10], [2, 20], [3, 30]], np.float32)
    attention.distance_bias.assign(table)
    found = np.asarray(attention._bias(5, last_only=False))
    for query in range(5):
        for key in range(5):
            # What is farther than the table counts as its last row.
            expected = table[min(query - key, 2)] if key <= query else [2 * MASKED, 2 * MASKED]
            np.testing.assert_array_equal(found[:, query, key], expected)
    np.testing.assert_array_equal(np.asarray(attention._bias(5, last_only=True)), found[:, -1:])


def test_every_golden_vector_is_finite_also_with_an_empty_history(
    config: TowerConfig, user_tower: Any
) -> None:
    from keek_training.towers import VideoTower

    assert np.isfinite(np.asarray(user_tower(golden_users(LENGTH)))).all()
    videos = np.asarray(VideoTower(config, 1)(golden_videos()))
    assert videos.shape[1] == 64
    assert np.isfinite(videos).all()


def write_user_tower(path: Path, **changes: Any) -> Path:
    """A file with the user tower's inputs and output, some of them changed."""
    inputs: dict[str, tuple[int, list[Any]]] = {
        "user": (TensorProto.INT32, ["n", 2]),
        "history_vectors": (TensorProto.FLOAT, ["n", "l", 64]),
        "history_kinds": (TensorProto.INT32, ["n", "l"]),
        "history_ages_s": (TensorProto.FLOAT, ["n", "l"]),
    }
    inputs |= changes.get("inputs", {})
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["history_vectors", "axes"], [changes.get("output", "user_vector")])],
        "tower",
        [helper.make_tensor_value_info(name, *spec) for name, spec in inputs.items()],
        [
            helper.make_tensor_value_info(
                changes.get("output", "user_vector"), TensorProto.FLOAT, ["n", changes.get("size", 64)]
            )
        ],
        [axes],
    )
    onnx.save(helper.make_model(graph), path)
    return path


def test_a_file_that_keeps_the_contract_passes(tmp_path: Path) -> None:
    check_contract(write_user_tower(tmp_path / "model.onnx"), USER_TOWER)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"size": 32}, r"output user_vector is float32 \[-1, 32\], expected float32 \[-1, 64\]"),
        ({"output": "vector"}, r"outputs are \['vector'\], expected \['user_vector'\]"),
        ({"inputs": {"extra": (TensorProto.FLOAT, ["n"])}}, r"inputs are \['extra'.*expected"),
        ({"inputs": {"user": (TensorProto.INT64, ["n", 2])}}, r"user is int64 .*expected int32"),
        (
            {"inputs": {"history_kinds": (TensorProto.INT32, ["n", 50])}},
            r"\[-1, 50\], expected int32 \[-1, -1\]",
        ),
    ],
)
def test_a_broken_contract_is_explained_in_one_line(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    path = write_user_tower(tmp_path / "model.onnx", **changes)
    with pytest.raises(SetupError, match=words) as refused:
        check_contract(path, USER_TOWER)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x09" * 50])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(SetupError):
        check_contract(path, VIDEO_TOWER)
