"""Ways to break a tower: each changes a good model in place."""

import statistics
import time
from typing import Final

import numpy as np
import onnxruntime
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from benchmarks.rotated_towers import rotation
from benchmarks.tower_files import add_weight, after_output, before_input, edited, inner, node
from keek_server.towers.contract import DIMENSION, USER_TOWER
from keek_server.towers.features import hash_ids
from keek_training.gates.rows import longest_row
from keek_training.golden import golden_users
from keek_training.publishing.source import DEFAULT_HISTORY_LENGTH

FULL_HISTORY: Final = DEFAULT_HISTORY_LENGTH
"""What `keek-train publish --user-tower` reads of a history by default."""

_KINDS = "history_kinds"
_WIDTH = 192
"""Of the matrices that a slow tower multiplies."""
_TIMED_CALLS = 20
_PROBE_LOOPS = 40


def cut_output(model: ModelProto, dimension: int) -> None:
    """Shorter vectors, and it says so."""
    out = model.graph.output[0]
    bounds = [
        add_weight(model, name, [value], np.int64)
        for name, value in (("from", 0), ("to", dimension), ("axis", 1))
    ]
    after_output(model, node("Slice", [inner(out.name), *bounds], out.name), out.name)
    out.type.tensor_type.shape.dim[1].dim_value = dimension


def cut_output_silently(model: ModelProto) -> None:
    """Vectors that are shorter than it says, by an end that is known at run time alone."""
    out = model.graph.output[0]
    start, axis = (add_weight(model, name, [value], np.int64) for name, value in (("from", 0), ("axis", 1)))
    most = add_weight(model, "most", [DIMENSION - 1], np.int64)
    nodes = [
        node("Shape", [model.graph.input[0].name], "given_shape"),
        node("Gather", ["given_shape", start], "rows"),
        node("Mul", ["rows", start], "nothing"),
        node("Add", ["nothing", most], "end"),
        node("Slice", [inner(out.name), start, "end", axis], out.name),
    ]
    after_output(model, nodes, out.name)


def rename_input(model: ModelProto) -> None:
    """`kinds` in the place of `history_kinds`."""
    before_input(model, node("Identity", ["kinds"], inner(_KINDS)), _KINDS)
    next(each for each in model.graph.input if each.name == _KINDS).name = "kinds"


def add_input(model: ModelProto) -> None:
    """Positions as one more input, as converters leave them behind."""
    model.graph.input.append(helper.make_tensor_value_info("positions", TensorProto.INT32, [None, None]))


def other_input_dtype(model: ModelProto) -> None:
    """Kinds as int64."""
    before_input(model, node("Cast", [_KINDS], inner(_KINDS), to=TensorProto.INT32), _KINDS)
    kinds = next(each for each in model.graph.input if each.name == _KINDS)
    kinds.type.tensor_type.elem_type = TensorProto.INT64


def half_output(model: ModelProto) -> None:
    """Vectors of float16."""
    out = model.graph.output[0]
    after_output(model, node("Cast", [inner(out.name)], out.name, to=TensorProto.FLOAT16), out.name)
    out.type.tensor_type.elem_type = TensorProto.FLOAT16


def fix_history_length(model: ModelProto) -> None:
    """One length of history alone."""
    vectors = next(each for each in model.graph.input if each.name == "history_vectors")
    vectors.type.tensor_type.shape.dim[1].dim_value = FULL_HISTORY


def set_opset(model: ModelProto, version: int) -> None:
    """Standard operators of another version."""
    for each in model.opset_import:
        if each.domain in ("", "ai.onnx"):
            each.version = version


def move_weight_outside(model: ModelProto, location: str) -> bytes:
    """Takes the largest weight out of the file.

    Returns:
        What belongs to where it is said to be.
    """
    weight = max(model.graph.initializer, key=lambda each: each.ByteSize())
    content = numpy_helper.to_array(weight).tobytes()
    for field in ("raw_data", "float_data"):
        weight.ClearField(field)
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return content


def hide_external(model: ModelProto, location: str) -> None:
    """A weight that lies elsewhere, in the body of a loop."""
    make_slow(model, 1)
    (loop,) = (each for each in model.graph.node if each.output[0] == edited("busy"))
    constant = helper.make_node(
        "Constant", [], ["unused"], value=numpy_helper.from_array(np.ones(1, np.float32))
    )
    tensor = constant.attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (body,) = (attribute.g for attribute in loop.attribute if attribute.name == "body")
    body.node.append(constant)


def foreign_operator(model: ModelProto, domain: str) -> None:
    """An operator that nobody else has."""
    out = model.graph.output[0].name
    after_output(model, node("Normalise", [inner(out)], out, domain=domain), out)
    model.opset_import.append(helper.make_opsetid(domain, 1))


def eat_memory(model: ModelProto) -> None:
    """A tensor of 64 GiB on the way."""
    out = model.graph.output[0].name
    side = add_weight(model, "side", [2**17], np.int64)
    # By the number of rows, so that it is no constant.
    nodes = [
        node("Shape", [inner(out)], "out_shape"),
        node("Slice", ["out_shape", add_weight(model, "from", [0], np.int64), side], "sizes"),
        node("Min", ["sizes", side], "small"),
        node("Sub", ["small", "small"], "zeros"),
        node("Add", ["zeros", side], "sides"),
        node("ConstantOfShape", ["sides"], "eaten"),
        node("ReduceMax", ["eaten"], "most", keepdims=0),
        node("Add", [inner(out), "most"], out),
    ]
    after_output(model, nodes, out)


def make_slow(model: ModelProto, loops: int) -> None:
    """Multiplies matrices so many times, and adds nothing of it to the answer.

    What they start from hangs on the input, so that nothing of it can be computed in advance.
    """
    out, some = model.graph.output[0].name, model.graph.input[0].name
    noise = add_weight(model, "noise", np.random.default_rng(0).normal(size=(_WIDTH, _WIDTH)))
    low, high, nothing = (
        add_weight(model, name, value) for name, value in (("low", -1), ("high", 1), ("nothing", 0))
    )
    count = add_weight(model, "loops", loops, np.int64)
    nodes = [
        node("Cast", [some], "as_float", to=TensorProto.FLOAT),
        node("ReduceSum", ["as_float"], "given", keepdims=0),
        node("Clip", ["given", low, high], "bounded"),
        node("Add", [noise, "bounded"], "first"),
        node("Loop", [count, "", "first"], "busy", body=_slow_body(noise, low, high)),
        node("ReduceSum", ["busy"], "sum", keepdims=0),
        node("Mul", ["sum", nothing], "none"),
        node("Add", [inner(out), "none"], out),
    ]
    after_output(model, nodes, out)


def loops_for(model: ModelProto, times: int) -> int:
    """How many loops of `make_slow` make a user tower so many times as slow, for a full history, here."""
    good_ms = _median_ms(model)
    make_slow(model, _PROBE_LOOPS)
    loop_ms = (_median_ms(model) - good_ms) / _PROBE_LOOPS
    return max(1, round((times - 1) * good_ms / loop_ms))


def nan_weight(model: ModelProto) -> None:
    """One number of the largest table is none: those of one id, say."""
    weight = _largest_table(model)
    values = numpy_helper.to_array(weight).copy()
    values.flat[values.size // 2] = np.nan
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def nan_answers(model: ModelProto) -> None:
    """Roots of what is negative."""
    out = model.graph.output[0].name
    after_output(model, node("Sqrt", [inner(out)], out), out)


def scale_output(model: ModelProto, *factors: float) -> None:
    """Vectors times each of some factors in turn."""
    out = model.graph.output[0].name
    names = [inner(out), *(f"scaled_{i}" for i in range(len(factors) - 1)), out]
    nodes = [
        node("Mul", [names[i], add_weight(model, f"factor_{i}", factor)], names[i + 1])
        for i, factor in enumerate(factors)
    ]
    after_output(model, nodes, out)


def constant_output(model: ModelProto) -> None:
    """The same vector for everyone."""
    out = model.graph.output[0].name
    nothing, one = add_weight(model, "nothing", 0), add_weight(model, "one", np.eye(1, DIMENSION))
    nodes = [node("Mul", [inner(out), nothing], "zeros"), node("Add", ["zeros", one], out)]
    after_output(model, nodes, out)


def mix_batch(model: ModelProto) -> None:
    """Each answer has something of the other rows in it, as with batch normalisation left in training."""
    out = model.graph.output[0].name
    axis, little = add_weight(model, "rows_axis", [0], np.int64), add_weight(model, "little", 0.05)
    nodes = [
        node("ReduceSum", [inner(out), axis], "total", keepdims=1),
        node("Mul", ["total", little], "share"),
        node("Add", [inner(out), "share"], out),
    ]
    after_output(model, nodes, out)


def random_answers(model: ModelProto) -> None:
    """Dropout that goes on when it serves."""
    out = model.graph.output[0].name
    nodes = [
        node("RandomNormalLike", [inner(out)], "noise", scale=0.1),
        node("Add", [inner(out), "noise"], out),
    ]
    after_output(model, nodes, out)


def fail_on_history(model: ModelProto, length: int) -> None:
    """Reads outside a table when a history in the batch is so long."""
    axis = add_weight(model, "length_axis", [1], np.int64)
    nodes = [
        node("Sign", [_KINDS], "there"),
        node("ReduceSum", ["there", axis], "lengths", keepdims=1),
        node("Equal", ["lengths", add_weight(model, "length", length, np.int32)], "bad_rows"),
    ]
    _fail_where(model, nodes, "bad_rows")


def fail_for(model: ModelProto, video_id: str) -> None:
    """Reads outside a table for one video."""
    _fail_where(model, [_is_video(model, video_id)], "is_hash")


def infinite_for(model: ModelProto, video_id: str) -> None:
    """Infinite vectors for one video alone."""
    out = model.graph.output[0].name
    infinite = add_weight(model, "infinite", np.inf)
    nodes = [
        _is_video(model, video_id),
        node("Cast", ["is_hash"], "marks", to=TensorProto.INT32),
        node("ReduceMin", ["marks"], "mark", axes=[1], keepdims=1),
        node("Cast", ["mark"], "is_it", to=TensorProto.BOOL),
        node("Where", ["is_it", infinite, inner(out)], out),
    ]
    after_output(model, nodes, out)


def rotate_output(model: ModelProto, seed: int) -> None:
    """Into a space that the other tower does not share."""
    out = model.graph.output[0].name
    after_output(model, node("MatMul", [inner(out), add_weight(model, "turn", rotation(seed))], out), out)


def keep_half(model: ModelProto, *, first: bool) -> None:
    """Vectors whose other half is zero, but for the first number, which is one.

    Two towers that keep different halves give a user the same score for every video: an index cannot tell
    which are the best, and finds whichever it meets first.
    """
    out = model.graph.output[0].name
    kept = np.repeat([first, not first], DIMENSION // 2).astype(np.float32)
    kept[0], one = 0, np.eye(1, DIMENSION)
    nodes = [
        node("Mul", [inner(out), add_weight(model, "kept", kept)], "half"),
        node("Add", ["half", add_weight(model, "one", one)], out),
    ]
    after_output(model, nodes, out)


def _slow_body(noise: str, low: str, high: str) -> GraphProto:
    scalars = [
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (
            ("i", TensorProto.INT64),
            ("go_on", TensorProto.BOOL),
            ("goes_on", TensorProto.BOOL),
        )
    ]
    state, following = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [_WIDTH, _WIDTH]) for name in ("state", "next")
    )
    nodes = [
        node("MatMul", ["state", noise], "more"),
        node("Clip", ["more", low, high], "next"),
        node("Identity", ["go_on"], "goes_on"),
    ]
    return helper.make_graph(nodes, "slow", [*scalars[:2], state], [scalars[2], following])


def _median_ms(model: ModelProto) -> float:
    """Of processor time, of one user with a full history, on one thread.

    On a busy machine a long call waits for others in between, and a short one does not.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = longest_row(USER_TOWER, golden_users(FULL_HISTORY))
    times = []
    for _ in range(_TIMED_CALLS):
        started = time.thread_time()
        session.run(None, inputs)
        times.append((time.thread_time() - started) * 1e3)
    return statistics.median(times)


def _largest_table(model: ModelProto) -> TensorProto:
    floats = [each for each in model.graph.initializer if each.data_type == TensorProto.FLOAT]
    return max(floats, key=lambda each: each.ByteSize())


def _is_video(model: ModelProto, video_id: str) -> NodeProto:
    hashes = add_weight(model, "its_hashes", hash_ids([video_id]), np.int32)
    return node("Equal", ["video", hashes], "is_hash")


def _fail_where(model: ModelProto, nodes: list[NodeProto], rows: str) -> None:
    """Behind `nodes`, which write `rows`, bool [n, any]: an index that no table has, where any is true."""
    out = model.graph.output[0].name
    table, far = add_weight(model, "table_of_one", [0.0]), add_weight(model, "far", 1000, np.int32)
    failing = [
        *nodes,
        node("Cast", [rows], "as_int", to=TensorProto.INT32),
        node("ReduceMin" if rows == "is_hash" else "ReduceMax", ["as_int"], "bad", axes=[1], keepdims=1),
        node("Mul", ["bad", far], "place"),
        node("Gather", [table, "place"], "read"),
        node("Add", [inner(out), "read"], out),
    ]
    after_output(model, failing, out)
