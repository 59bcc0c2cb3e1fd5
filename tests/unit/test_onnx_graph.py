"""The converted graph without its arithmetic on shapes: fewer nodes, the same vectors."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from keek_training.onnx_graph import with_layer_norms, without_flattening


def _dense(scope: str) -> onnx.ModelProto:
    """x [n, k, 4] by a matrix [4, 3], as the conversion of a dense layer writes it, and a bias."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "free"], ["sizes"], "gather"),
        helper.make_node("Concat", ["sizes", "three"], ["whole"], "concat", axis=0),
        helper.make_node("Reshape", ["x", "flat"], ["rows"], f"{scope}/Reshape"),
        helper.make_node("MatMul", ["rows", "kernel"], ["product"], f"{scope}/MatMul"),
        helper.make_node("Reshape", ["product", "whole"], ["restored"], scope),
        helper.make_node("Add", ["restored", "bias"], ["y"], "add"),
    ]
    rng = np.random.default_rng(4)
    values = {
        "free": np.array([0, 1]),
        "three": np.array([3]),
        "flat": np.array([-1, 4]),
        "kernel": rng.normal(size=(4, 3)).astype(np.float32),
        "bias": rng.normal(size=3).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "k", 3])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=9)


def _answer(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    return np.asarray(found)


def test_a_dense_layer_becomes_one_product_and_answers_the_same() -> None:
    model = _dense("tower/inner/Tensordot")
    x = np.random.default_rng(5).normal(size=(2, 5, 4)).astype(np.float32)
    expected = _answer(model, x)
    assert without_flattening(model) == 1
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["MatMul", "Add"]
    assert {tensor.name for tensor in model.graph.initializer} == {"kernel", "bias"}
    np.testing.assert_allclose(_answer(model, x), expected, atol=1e-6)


def test_other_reshapes_stay() -> None:
    model = _dense("tower/inner/split")
    before = [node.op_type for node in model.graph.node]
    assert without_flattening(model) == 0
    assert [node.op_type for node in model.graph.node] == before


@pytest.mark.parametrize("rank", [1, 3])
def test_what_is_no_matrix_stays(rank: int) -> None:
    model = _dense("tower/inner/Tensordot")
    shape = {1: (4,), 3: (1, 4, 3)}[rank]
    kernel = numpy_helper.from_array(np.zeros(shape, np.float32), "kernel")
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "kernel"]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, kernel])
    assert without_flattening(model) == 0


def _norm(centre: str = "x") -> onnx.ModelProto:
    """x [n, k, 4] normalised over the last, as the conversion writes it; `centre` is what is squared."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["mean"]),
        helper.make_node("Neg", ["mean"], ["less"]),
        helper.make_node("Sub", [centre, "mean"], ["off"]),
        helper.make_node("Mul", ["off", "off"], ["squares"]),
        helper.make_node("GlobalAveragePool", ["squares"], ["variance"]),
        helper.make_node("Add", ["variance", "epsilon"], ["above"]),
        helper.make_node("Sqrt", ["above"], ["root"]),
        helper.make_node("Reciprocal", ["root"], ["inverse"]),
        helper.make_node("Mul", ["inverse", "gamma"], ["scale"]),
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("Mul", ["less", "scale"], ["back"]),
        helper.make_node("Add", ["back", "beta"], ["moved"]),
        helper.make_node("Add", ["scaled", "moved"], ["y"]),
    ]
    rng = np.random.default_rng(6)
    values = {
        "epsilon": np.array(1e-6, np.float32),
        "gamma": rng.normal(size=(1, 1, 4)).astype(np.float32),
        "beta": rng.normal(size=(1, 1, 4)).astype(np.float32),
        "other": rng.normal(size=(1, 1, 4)).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "k", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "k", 4])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_a_normalisation_becomes_one_operator_and_answers_the_same() -> None:
    model = _norm()
    x = np.random.default_rng(7).normal(size=(2, 5, 4)).astype(np.float32)
    expected = _answer(model, x)
    assert with_layer_norms(model) == 1
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["LayerNormalization"]
    np.testing.assert_allclose(_answer(model, x), expected, atol=1e-5)


def test_what_only_looks_like_a_normalisation_stays() -> None:
    model = _norm(centre="other")
    before = [node.op_type for node in model.graph.node]
    assert with_layer_norms(model) == 0
    assert [node.op_type for node in model.graph.node] == before
