"""The embedded Triton serves ONNX models with the committed configuration, and guards its control API."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedded_towers import (
    Array,
    infer,
    publish,
    user_inputs,
    user_tower,
    user_vectors,
    video_inputs,
    video_tower,
    video_vectors,
)
from onnx import TensorProto, helper
from patience import eventually
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from keek_server.embedded import EmbeddedStack
from keek_server.embedded.ports import free_port
from keek_server.settings import Settings
from keek_server.towers.contract import USER_TOWER, VIDEO_TOWER, TensorSpec, TowerContract
from keek_server.towers.control import CONTROL_HEADER, control_headers

TWO_OUTPUTS_CONFIG = """
name: "two_outputs"
backend: "onnxruntime"
input [ { name: "x" data_type: TYPE_FP32 dims: [ 3 ] } ]
output [
  { name: "double" data_type: TYPE_FP32 dims: [ 3 ] },
  { name: "negative" data_type: TYPE_FP32 dims: [ 3 ] }
]
"""


def add_two_outputs(repository: Path) -> None:
    """A model without a batch dimension and with two outputs."""

    def vector(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [3])

    nodes = [helper.make_node("Add", ["x", "x"], ["double"]), helper.make_node("Neg", ["x"], ["negative"])]
    graph = helper.make_graph(nodes, "two", [vector("x")], [vector("double"), vector("negative")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (repository / "two_outputs").mkdir()
    (repository / "two_outputs" / "config.pbtxt").write_text(TWO_OUTPUTS_CONFIG)
    publish(model, repository, "two_outputs", 1)


@pytest.fixture(scope="module")
async def serving(
    settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EmbeddedStack]:
    """A stack of this file's own, with version 1 of each tower."""
    settings = settings_in(tmp_path_factory.mktemp("serving"))
    publish(user_tower(USER_TOWER, 1.0), settings.model_repository, "user_tower", 1)
    publish(video_tower(VIDEO_TOWER), settings.model_repository, "video_tower", 1)
    add_two_outputs(settings.model_repository)
    async with EmbeddedStack(settings) as stack:
        yield stack


@pytest.fixture
async def client(serving: EmbeddedStack) -> AsyncIterator[InferenceServerClient]:
    async with InferenceServerClient(serving.settings.triton_url) as client:
        yield client


async def test_concurrent_requests_of_different_shapes_get_the_right_answers(
    client: InferenceServerClient,
) -> None:
    rng = np.random.default_rng(1)
    requests = [user_inputs(rng, batch, length) for batch in (1, 2, 7) for length in (1, 5, 50)] * 10
    answers = await asyncio.gather(*(infer(client, "user_tower", r, "user_vector", 1) for r in requests))
    for inputs, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer, user_vectors(inputs, 1.0), rtol=1e-4, atol=1e-4)


async def test_a_full_batch_gets_the_right_answer(client: InferenceServerClient) -> None:
    inputs = video_inputs(np.random.default_rng(2), VIDEO_TOWER.max_batch_size, 16)
    answer = await infer(client, "video_tower", inputs, "video_vector", 1)
    np.testing.assert_allclose(answer, video_vectors(inputs), rtol=1e-5, atol=1e-3)


async def test_half_precision_and_integer_inputs_arrive_unharmed(client: InferenceServerClient) -> None:
    rng = np.random.default_rng(3)
    requests = [video_inputs(rng, batch, tags) for batch in (1, 3) for tags in (1, 16)] * 5
    answers = await asyncio.gather(*(infer(client, "video_tower", r, "video_vector", 1) for r in requests))
    for inputs, answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer, video_vectors(inputs), rtol=1e-5, atol=1e-3)


async def test_requests_that_wait_share_runs(client: InferenceServerClient) -> None:
    async def counts() -> tuple[int, int]:
        answer = await client.get_inference_statistics("user_tower", "1", client_timeout=30.0)
        return answer.model_stats[0].inference_count, answer.model_stats[0].execution_count

    inputs = user_inputs(np.random.default_rng(7), 1, 50)
    inferences, executions = await counts()
    await asyncio.gather(*(infer(client, "user_tower", inputs, "user_vector", 1) for _ in range(200)))

    async def all_count() -> bool:
        return (await counts())[0] >= inferences + 200

    # Triton counts a run a little after it has answered.
    await eventually(all_count)
    assert (await counts())[1] - executions < 150


async def test_only_the_bad_request_of_many_fails(client: InferenceServerClient) -> None:
    rng = np.random.default_rng(4)
    requests = [user_inputs(rng, 2, 5) for _ in range(64)]
    requests[17]["user"][0, 0] = 999  # not in the tower's table
    answers: list[Array | BaseException] = await asyncio.gather(
        *(infer(client, "user_tower", r, "user_vector", 1) for r in requests), return_exceptions=True
    )
    error = answers.pop(17)
    assert isinstance(error, InferenceServerException)
    assert "idx=999 must be within" in str(error)
    good = requests[:17] + requests[18:]
    for inputs, answer in zip(good, answers, strict=True):
        assert isinstance(answer, np.ndarray)
        np.testing.assert_allclose(answer, user_vectors(inputs, 1.0), rtol=1e-4, atol=1e-4)


async def test_the_output_asked_for_is_the_one_answered_also_without_batches(
    client: InferenceServerClient,
) -> None:
    inputs = {"x": np.float32([1, 2, 3])}
    np.testing.assert_array_equal(await infer(client, "two_outputs", inputs, "negative"), [-1, -2, -3])
    np.testing.assert_array_equal(await infer(client, "two_outputs", inputs, "double"), [2, 4, 6])


async def test_a_new_version_is_loaded_with_the_token_and_both_versions_answer(
    serving: EmbeddedStack, client: InferenceServerClient
) -> None:
    publish(user_tower(USER_TOWER, 2.0), serving.settings.model_repository, "user_tower", 2)
    inputs = user_inputs(np.random.default_rng(5), 3, 4)
    with pytest.raises(InferenceServerException):
        await infer(client, "user_tower", inputs, "user_vector", 2)
    headers = control_headers(serving.settings.triton_control_token)
    await client.load_model("user_tower", headers=headers, client_timeout=30.0)
    for version, scale in ((1, 1.0), (2, 2.0)):
        answer = await infer(client, "user_tower", inputs, "user_vector", version)
        np.testing.assert_allclose(answer, user_vectors(inputs, scale), rtol=1e-4, atol=1e-4)


async def test_a_version_that_breaks_the_contract_is_refused_and_the_others_keep_serving(
    serving: EmbeddedStack, client: InferenceServerClient
) -> None:
    extra = TensorSpec("positions", np.float32, (-1,))
    wrong = TowerContract("video_tower", (*VIDEO_TOWER.inputs, extra), VIDEO_TOWER.output, 1024)
    repository = serving.settings.model_repository
    publish(video_tower(wrong), repository, "video_tower", 2)
    headers = control_headers(serving.settings.triton_control_token)
    with pytest.raises(InferenceServerException, match="reads an input positions that is not configured"):
        await client.load_model("video_tower", headers=headers, client_timeout=30.0)
    inputs = video_inputs(np.random.default_rng(6), 1, 1)
    answer = await infer(client, "video_tower", inputs, "video_vector", 1)
    np.testing.assert_allclose(answer, video_vectors(inputs), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("headers", [{}, {CONTROL_HEADER: "guess"}], ids=["no token", "wrong token"])
async def test_the_control_api_is_refused_without_the_token(
    stack: EmbeddedStack, headers: dict[str, str]
) -> None:
    async with InferenceServerClient(stack.settings.triton_url) as client:
        calls = (
            client.get_model_repository_index(headers=headers, client_timeout=30.0),
            client.load_model("user_tower", headers=headers, client_timeout=30.0),
            client.unload_model("user_tower", headers=headers, client_timeout=30.0),
            client.update_log_settings({"log_info": False}, headers=headers, client_timeout=30.0),
        )
        for call in calls:
            with pytest.raises(InferenceServerException, match="restricted"):
                await call
        assert await client.is_server_ready(client_timeout=30.0)


REACHES_TRITON = """
import asyncio
import os
import sys
from keek_server.settings import Settings
from keek_server.towers.client import open_towers

async def main():
    async with open_towers(Settings()):
        pass

asyncio.run(main())
"""


async def test_no_proxy_of_the_environment_is_asked_for_triton(serving: EmbeddedStack) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"
    variables = {name: value for name, value in os.environ.items() if name != "no_proxy"}
    variables |= {
        "http_proxy": proxy,
        "KEEK_TRITON_URL": str(serving.settings.triton_url),
        "KEEK_STARTUP_TIMEOUT_S": "60",
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", REACHES_TRITON, env=variables)
    try:
        assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
