"""What is refused before anything is copied or loaded, and why; no file can do any harm meanwhile."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from gate_towers import CLIP_WEIGHTS, ID_TABLE, PatientLimits, slow, user_tower, video_tower, written
from onnx import ModelProto, TensorProto, helper, numpy_helper

from keek_server.errors import SetupError
from keek_server.releases.manifest import GateResult
from keek_server.settings import Settings
from keek_server.towers.contract import DIMENSION, USER_TOWER, VIDEO_TOWER
from keek_training.gates.golden import Golden, answers_of
from keek_training.gates.preflight import LiveTowers, preflight
from keek_training.gates.verdict import describe, failures
from keek_training.publishing.source import TowerSource

SETTINGS = Settings(data_dir=Path("unused"))


def refusals(folder: Path, users: ModelProto | bytes, videos: ModelProto | bytes) -> list[GateResult]:
    return failures(preflight(written(folder, users, videos), None, SETTINGS))


def the_refusal(folder: Path, users: ModelProto | bytes, videos: ModelProto | bytes) -> GateResult:
    (refusal,) = refusals(folder, users, videos)
    return refusal


def with_external(model: ModelProto, location: str) -> ModelProto:
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return model


def test_good_towers_pass_every_gate(tmp_path: Path) -> None:
    source = written(tmp_path, user_tower(), video_tower())
    results = preflight(source, None, SETTINGS)
    assert failures(results) == []
    file = {"size_mb", "format", "external_data", "opset", "contract", "weights"}
    for tower in ("user_tower", "video_tower"):
        names = [result.name for result in results if result.detail.startswith(tower)]
        assert set(names) == file | {"runs", "max_norm", "spread", "batch", "latency_ms"}
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("users", "videos"),
    [
        (b"", b"\x80\x04\x95pickled"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), b"ORTM" * 10),
        (b"x" * 5000, bytes(5000)),
    ],
)
def test_what_is_no_onnx_is_refused(tmp_path: Path, users: bytes, videos: bytes) -> None:
    refused = refusals(tmp_path, users, videos)
    assert [refusal.name for refusal in refused] == ["format", "format"]
    assert all("only ONNX is taken: it is no ONNX model" in refusal.detail for refusal in refused)


@pytest.mark.parametrize("missing", [0.7, 0.001])
def test_a_file_whose_end_is_missing_is_refused(tmp_path: Path, missing: float) -> None:
    towers = (model.SerializeToString() for model in (user_tower(), video_tower()))
    refused = refusals(tmp_path, *(whole[: int(len(whole) * (1 - missing))] for whole in towers))
    assert [(refusal.name, refusal.value) for refusal in refused] == [("format", None)] * 2
    assert all("its end is missing" in refusal.detail for refusal in refused)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    source = written(tmp_path, user_tower(), video_tower())
    source.user_tower.unlink()
    os.mkfifo(source.user_tower)
    source.video_tower.unlink()
    source.video_tower.mkdir()
    refused = failures(preflight(source, None, SETTINGS))
    assert [refusal.name for refusal in refused] == ["format", "format"]
    assert all("no regular file" in refusal.detail for refusal in refused)


def test_a_file_that_is_too_large_is_not_even_read(tmp_path: Path) -> None:
    source = written(tmp_path, user_tower(), video_tower())
    with source.user_tower.open("r+b") as file:
        file.truncate(2**40)
    (refusal,) = failures(preflight(source, None, SETTINGS))
    assert (refusal.name, refusal.value, refusal.bound) == ("size_mb", 2**20, 1024)


def test_weights_outside_the_file_are_refused_and_never_opened(tmp_path: Path) -> None:
    # Whoever opens a pipe that nobody writes to waits for ever.
    os.mkfifo(tmp_path / "weights.bin")
    began = time.monotonic()
    refused = refusals(
        tmp_path,
        with_external(user_tower(), "weights.bin"),
        with_external(video_tower(), "../../../../../etc/passwd"),
    )
    assert time.monotonic() - began < 120
    assert [(refusal.name, refusal.value) for refusal in refused] == [("external_data", 1)] * 2
    assert "'weights.bin'" in refused[0].detail
    assert "'../../../../../etc/passwd'" in refused[1].detail


def test_weights_outside_the_file_are_found_in_the_body_of_a_loop_too(tmp_path: Path) -> None:
    model = slow(1)
    hidden = helper.make_node("Constant", [], ["unused"], value=numpy_helper.from_array(np.float32([1])))
    tensor = hidden.attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/dev/zero")
    (loop,) = (node for node in model.graph.node if node.op_type == "Loop")
    loop.attribute[0].g.node.append(hidden)
    assert the_refusal(tmp_path, model, video_tower()).name == "external_data"


def test_an_opset_that_onnx_runtime_does_not_know_is_refused(tmp_path: Path) -> None:
    refusal = the_refusal(tmp_path, user_tower(opset=99), video_tower())
    assert (refusal.name, refusal.value) == ("opset", 99)
    assert 17 <= refusal.bound < 99


def test_operators_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    model = user_tower()
    model.graph.node[1].domain = "our.own"
    refusal = the_refusal(tmp_path, model, video_tower())
    assert refusal.name == "runs"
    assert "our.own" in refusal.detail


def test_swapped_towers_break_the_contract_in_one_line_each(tmp_path: Path) -> None:
    refused = refusals(tmp_path, video_tower(), user_tower())
    assert [refusal.name for refusal in refused] == ["contract", "contract"]
    lines = [describe(refusal) for refusal in refused]
    assert "inputs are ['clip_vector', 'duration_s'" in lines[0]
    assert "expected ['history_ages_s', 'history_kinds', 'history_vectors', 'user']" in lines[0]
    assert not any("\n" in line for line in lines)


def test_a_wrong_input_name_says_what_was_expected(tmp_path: Path) -> None:
    model = user_tower()
    model.graph.input[0].name = "usr"
    refusal = the_refusal(tmp_path, model, video_tower())
    assert refusal.name == "contract"
    assert "'usr'" in refusal.detail
    assert "expected ['history_ages_s', 'history_kinds', 'history_vectors', 'user']" in refusal.detail


def test_a_wrong_dimension_is_refused_whether_the_file_admits_it_or_not(tmp_path: Path) -> None:
    narrow = np.eye(DIMENSION, 32, dtype=np.float32)
    refusal = the_refusal(tmp_path, user_tower(narrow, dimension=32), video_tower())
    assert refusal.name == "contract"
    assert "output user_vector is float32 [-1, 32], expected float32 [-1, 64]" in refusal.detail
    # ONNX Runtime infers it here, and would only warn.
    lying = refusals(tmp_path, user_tower(narrow), video_tower())
    assert [refusal.name for refusal in lying] in (["contract"], ["runs"])
    assert "32" in lying[0].detail


def test_a_shape_that_is_known_only_when_it_runs_is_refused(tmp_path: Path) -> None:
    extra = [
        helper.make_node("Shape", ["user"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["count"]),
        helper.make_node("Concat", ["half", "count"], ["half_shape"], axis=0),
        helper.make_node("Reshape", ["narrow", "wanted"], ["user_vector"]),
    ]
    model = user_tower(np.eye(DIMENSION, dtype=np.float32), extra=extra[:2])
    model.graph.node.append(helper.make_node("Mul", ["count", "two"], ["twice"]))
    model.graph.node.append(helper.make_node("Concat", ["twice", "half"], ["wanted"], axis=0))
    model.graph.node.append(helper.make_node("Reshape", ["vector", "wanted"], ["user_vector"]))
    for name, value in {"first": [0], "two": [2], "half": [DIMENSION // 2]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.int64(value), name))
    refusal = the_refusal(tmp_path, model, video_tower())
    assert refusal.name == "contract"
    assert "comes out as float32 [134, 32], expected float32 [134, 64]" in refusal.detail


def test_weights_that_are_not_numbers_are_refused_even_where_no_golden_input_meets_them(
    tmp_path: Path,
) -> None:
    table = ID_TABLE.copy()
    table[3, 3] = np.nan
    refusal = the_refusal(tmp_path, user_tower(), video_tower(table))
    assert (refusal.name, refusal.value) == ("weights", 1)
    assert "NaN in the weights 'table'" in refusal.detail


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    refused = refusals(tmp_path, user_tower(), video_tower(np.full_like(ID_TABLE, np.inf)))
    by_name = {refusal.name: refusal for refusal in refused}
    assert by_name["max_norm"].value is None
    assert "64 of 64 are not finite" in by_name["max_norm"].detail


def test_norms_that_are_too_large_are_refused(tmp_path: Path) -> None:
    refusal = the_refusal(tmp_path, user_tower(), video_tower(ID_TABLE * np.float32(1e4)))
    assert refusal.name == "max_norm"
    assert refusal.value is not None
    assert refusal.value > 1e4


def test_zero_vectors_and_constant_vectors_are_refused(tmp_path: Path) -> None:
    zero = the_refusal(tmp_path, user_tower(np.zeros((DIMENSION, DIMENSION), np.float32)), video_tower())
    assert (zero.name, zero.value) == ("spread", 0)
    assert "67 of them zero" in zero.detail
    same = video_tower(np.ones((97, DIMENSION), np.float32), CLIP_WEIGHTS * np.float32(1e-6))
    constant = the_refusal(tmp_path, user_tower(), same)
    assert constant.name == "spread"
    assert constant.value is not None
    assert 0 < constant.value < 1e-3


def test_a_vector_that_depends_on_who_else_is_in_the_batch_is_refused(tmp_path: Path) -> None:
    extra = [
        helper.make_node("ReduceMean", ["vector"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["vector", "mean"], ["user_vector"]),
    ]
    refused = refusals(tmp_path, user_tower(extra=extra), video_tower())
    assert [refusal.name for refusal in refused] == ["batch"]


def test_a_golden_input_that_fails_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = video_tower()
    (rows,) = (weight for weight in model.graph.initializer if weight.name == "rows")
    rows.CopyFrom(numpy_helper.from_array(np.array(1 << 30, np.int32), "rows"))
    refusal = the_refusal(tmp_path, user_tower(), model)
    assert refusal.name == "runs"
    assert "Gather" in refusal.detail


def test_a_tower_that_is_many_times_slower_than_the_live_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "live").mkdir()
    live = written(tmp_path / "live", user_tower(), video_tower())
    towers = LiveTowers(live.user_tower, live.video_tower, live.history_length)
    source = written(tmp_path, slow(40), video_tower())
    (refusal,) = failures(preflight(source, towers, SETTINGS))
    assert refusal.name == "latency"
    assert refusal.value is not None
    assert refusal.value > SETTINGS.gate_latency
    # Without a live release, and where its files have gone, milliseconds count: more on a busy machine.
    patient, strict = (SETTINGS.model_copy(update={"gate_latency_ms": ms}) for ms in (60_000.0, 2.0))
    assert failures(preflight(source, None, patient)) == []
    gone = LiveTowers(tmp_path / "gone.onnx", tmp_path / "gone.onnx", 20)
    (refusal,) = failures(preflight(source, gone, strict))
    assert refusal.name == "latency_ms"


def test_a_tower_that_never_ends_is_refused_in_time(tmp_path: Path) -> None:
    source = written(tmp_path, slow(10**9), video_tower())
    (refusal,) = failures(preflight(source, None, SETTINGS, limits=PatientLimits(cpu_s=1)))
    assert (refusal.name, refusal.value) == ("runs", None)
    assert "more than 1 s of processor time" in refusal.detail


def test_a_tower_that_takes_all_memory_is_refused(tmp_path: Path) -> None:
    extra = [
        helper.make_node("ConstantOfShape", ["huge"], ["zeros"]),
        helper.make_node("Exp", ["zeros"], ["ones"]),
        helper.make_node("ReduceMax", ["ones"], ["most"], keepdims=0),
        helper.make_node("Mul", ["vector", "most"], ["user_vector"]),
    ]
    model = user_tower(extra=extra)
    model.graph.initializer.append(numpy_helper.from_array(np.int64([2**36]), "huge"))
    refusal = the_refusal(tmp_path, model, video_tower())
    assert (refusal.name, refusal.value) == ("runs", None)


def test_towers_that_are_not_those_of_the_golden_vectors_are_refused(tmp_path: Path) -> None:
    source = written(tmp_path, user_tower(), video_tower())
    answers = {}
    for contract in (USER_TOWER, VIDEO_TOWER):
        golden = Golden.of(source, contract)
        answers |= {f"{contract.model}/{name}": values for name, values in golden.inputs.items()}
        answers[f"{contract.model}/{contract.output.name}"] = answers_of(source, contract, golden)
    np.savez(tmp_path / "golden.npz", **answers)
    paths = source.user_tower, source.video_tower
    with_golden = TowerSource("run", *paths, source.history_length, {}, tmp_path / "golden.npz")
    results = preflight(with_golden, None, SETTINGS)
    assert failures(results) == []
    assert [result.name for result in results].count("parity") == 2
    written(tmp_path, user_tower(), video_tower(ID_TABLE + np.float32(0.01)))
    (refusal,) = failures(preflight(with_golden, None, SETTINGS))
    assert refusal.name == "parity"
    assert refusal.value is not None
    assert refusal.value > SETTINGS.gate_parity
    (tmp_path / "golden.npz").write_bytes(b"no zip")
    with pytest.raises(SetupError, match="holds no golden vectors: export again"):
        preflight(with_golden, None, SETTINGS)


def test_what_a_file_calls_its_tensors_cannot_command_a_terminal(tmp_path: Path) -> None:
    model = user_tower()
    model.graph.input[0].name = "\x1b[2Jcleared\nsecond line" + "x" * 5000
    refusal = the_refusal(tmp_path, model, video_tower())
    assert refusal.detail.isprintable()
    assert len(refusal.detail) < 600


def test_files_that_are_brought_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"none\.onnx does not exist"):
        TowerSource.of_files(tmp_path / "none.onnx", tmp_path / "none.onnx")
    source = written(tmp_path, user_tower(), video_tower())
    with pytest.raises(SetupError, match="history length of 0 does not fit"):
        TowerSource.of_files(source.user_tower, source.video_tower, 0)
    assert source.name == "users.onnx and videos.onnx"
