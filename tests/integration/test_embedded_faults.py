"""The embedded stack heals what dies, and leaves nothing behind, however it ends."""

import asyncio
import errno
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedded_towers import infer, publish, user_inputs, user_tower, user_vectors
from patience import eventually
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from keek_server.embedded import EmbeddedStack, procfs, read_running_stack
from keek_server.embedded.processes import SupervisedProcess
from keek_server.embedded.redis import EmbeddedRedis
from keek_server.embedded.triton import SHARED_MEMORY
from keek_server.errors import SetupError
from keek_server.settings import Settings
from keek_server.towers.contract import USER_TOWER
from keek_server.towers.control import control_headers

HOLDER = """
import asyncio, contextlib, signal, sys
from keek_server.embedded import EmbeddedStack
from keek_server.settings import Settings

async def main():
    # asyncio's own handler is not there where SIGINT is ignored, as behind a shell's &.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, asyncio.current_task().cancel)
    async with EmbeddedStack(Settings.model_validate_json(sys.argv[1])):
        print("ready", flush=True)
        await asyncio.sleep(600)

with contextlib.suppress(asyncio.CancelledError):
    asyncio.run(main())
"""
"""A program that holds a stack until it is ended."""


async def restarted(child: SupervisedProcess[Any], old_pid: int, data_dir: Path) -> None:
    """Waits until another process is ready in place of one that died."""

    def announced() -> bool:
        running = read_running_stack(data_dir)
        assert running is not None
        return child.pid != old_pid and child.pid in (running.redis_pid, running.triton_pid)

    await eventually(announced)


def mark_of(data_dir: Path) -> str:
    """The mark of the stack that runs, or last ran, there."""
    return (data_dir / "run" / "stack.lock").read_text()


def segments(mark: str) -> list[Path]:
    """Shared memory of a stack."""
    return list(SHARED_MEMORY.glob(f"*{mark}*"))


def assert_port_is_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # closed connections linger
        probe.bind(("127.0.0.1", port))


def assert_nothing_remains(settings: Settings, mark: str, ports: list[int]) -> None:
    assert procfs.marked_processes(mark) == []
    assert segments(mark) == []
    assert not (settings.data_dir / "run" / "stack.json").exists()
    for port in ports:
        assert_port_is_free(port)


async def test_a_killed_triton_comes_back_on_its_port_with_all_its_models(stack_settings: Settings) -> None:
    inputs = user_inputs(np.random.default_rng(1), 2, 3)
    async with EmbeddedStack(stack_settings) as stack:
        assert stack.triton is not None
        async with InferenceServerClient(stack.settings.triton_url) as client:
            publish(user_tower(USER_TOWER, 3.0), stack.settings.model_repository, "user_tower", 7)
            headers = control_headers(stack.settings.triton_control_token)
            await client.load_model("user_tower", headers=headers, client_timeout=30.0)
        pid, mark = stack.triton.pid, mark_of(stack_settings.data_dir)
        before = segments(mark)
        assert before
        os.kill(pid, signal.SIGKILL)
        await restarted(stack.triton, pid, stack_settings.data_dir)
        assert not set(before) & set(segments(mark))
        async with InferenceServerClient(stack.settings.triton_url) as client:
            answer = await infer(client, "user_tower", inputs, "user_vector", 7)
            np.testing.assert_allclose(answer, user_vectors(inputs, 3.0), rtol=1e-4, atol=1e-4)
            await client.get_model_repository_index(headers=headers, client_timeout=30.0)


async def test_a_killed_redis_comes_back_empty_on_its_port(stack_settings: Settings) -> None:
    async with EmbeddedStack(stack_settings) as stack:
        assert stack.redis is not None
        assert stack.settings.redis_url is not None
        client = Redis.from_url(stack.settings.redis_url, retry=Retry(NoBackoff(), 1))
        await client.set("key", "value")
        pid = stack.redis.pid
        os.kill(pid, signal.SIGKILL)
        await restarted(stack.redis, pid, stack_settings.data_dir)
        assert await client.get("key") is None
        await client.aclose()


@pytest.mark.parametrize(
    "fault", [OSError(errno.EMFILE, "Too many open files"), SetupError("processes cannot be killed: [7]")]
)
async def test_a_killed_redis_comes_back_though_at_first_nothing_can_be_tidied_up_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    kill_marked, calls = procfs.kill_marked, 0

    def short(mark: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise fault
        kill_marked(mark)

    service, mark = EmbeddedRedis(tmp_path), secrets.token_hex(8)
    child = SupervisedProcess(service, mark=mark, log_path=tmp_path / "redis.log", ready_timeout_s=30.0)
    await child.start()
    try:
        pid = child.pid
        monkeypatch.setattr(procfs, "kill_marked", short)
        os.kill(pid, signal.SIGKILL)

        async def answers() -> bool:
            return child.pid != pid and await service.ready(child.pid)

        await eventually(answers)
        assert calls == 2
    finally:
        await child.stop()
    assert procfs.marked_processes(mark) == []


async def test_a_model_whose_process_was_killed_is_served_again(stack_settings: Settings) -> None:
    publish(user_tower(USER_TOWER, 1.0), stack_settings.model_repository, "user_tower", 1)
    inputs = user_inputs(np.random.default_rng(2), 1, 3)
    async with EmbeddedStack(stack_settings) as stack:
        assert stack.triton is not None
        pid = stack.triton.pid
        for stub in procfs.children(pid):
            os.kill(stub, signal.SIGKILL)
        async with InferenceServerClient(stack.settings.triton_url) as client:
            with pytest.raises(InferenceServerException):
                await infer(client, "user_tower", inputs, "user_vector", 1)
        await restarted(stack.triton, pid, stack_settings.data_dir)
        async with InferenceServerClient(stack.settings.triton_url) as client:
            answer = await infer(client, "user_tower", inputs, "user_vector", 1)
        np.testing.assert_allclose(answer, user_vectors(inputs, 1.0), rtol=1e-4, atol=1e-4)


async def test_a_model_that_cannot_be_loaded_is_named_and_the_others_are_served(
    stack_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    repository = stack_settings.model_repository
    publish(user_tower(USER_TOWER, 1.0), repository, "user_tower", 1)
    (repository / "video_tower" / "1").mkdir()
    (repository / "video_tower" / "1" / "model.onnx").write_bytes(b"not a model")
    async with (
        EmbeddedStack(stack_settings) as stack,
        InferenceServerClient(stack.settings.triton_url) as client,
    ):
        assert await client.is_model_ready("user_tower", "1", client_timeout=30.0)
        assert not await client.is_model_ready("video_tower", "1", client_timeout=30.0)
    own = [record for record in caplog.records if record.name.startswith("keek_server.embedded")]
    [record] = [record for record in own if record.levelname == "ERROR"]
    assert "no version of video_tower, because version 1 cannot be loaded" in record.getMessage()
    assert "INVALID_PROTOBUF" in record.getMessage()


async def test_nothing_remains_after_the_block(stack_settings: Settings) -> None:
    publish(user_tower(USER_TOWER, 1.0), stack_settings.model_repository, "user_tower", 1)
    async with EmbeddedStack(stack_settings) as stack:
        assert stack.triton is not None
        assert stack.redis is not None
        mark = mark_of(stack_settings.data_dir)
        ports = [stack.triton.service.port, stack.redis.service.port]
        assert len(procfs.marked_processes(mark)) >= 3  # Redis, Triton, a process a model instance
        assert segments(mark)
    assert_nothing_remains(stack_settings, mark, ports)


async def test_nothing_remains_when_starting_is_cancelled(stack_settings: Settings) -> None:
    publish(user_tower(USER_TOWER, 1.0), stack_settings.model_repository, "user_tower", 1)
    stack = EmbeddedStack(stack_settings)
    start = asyncio.create_task(stack.__aenter__())
    await eventually(lambda: stack.triton is not None)
    assert stack.triton is not None
    assert stack.redis is not None
    mark = mark_of(stack_settings.data_dir)
    await eventually(lambda: bool(procfs.marked_processes(f"{mark}-triton")))
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    ports = [stack.triton.service.port, stack.redis.service.port]
    assert_nothing_remains(stack_settings, mark, ports)


async def test_nothing_remains_when_stopping_is_cancelled(stack_settings: Settings) -> None:
    publish(user_tower(USER_TOWER, 1.0), stack_settings.model_repository, "user_tower", 1)
    stack = await EmbeddedStack(stack_settings).__aenter__()
    assert stack.triton is not None
    assert stack.redis is not None
    ports = [stack.triton.service.port, stack.redis.service.port]
    mark = mark_of(stack_settings.data_dir)
    # It does not stop by itself, nor is it killed before the test goes on, however late that is.
    stack.triton.service.stop_grace_s = 60.0
    os.kill(stack.triton.pid, signal.SIGSTOP)
    stop = asyncio.create_task(stack.__aexit__(None, None, None))
    await asyncio.sleep(0.1)
    assert not stop.done()
    stop.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stop
    assert_nothing_remains(stack_settings, mark, ports)


def hold(settings: Settings) -> subprocess.Popen[str]:
    """Starts a program that holds a stack, in a session of its own, and waits until it does."""
    values = json.dumps(settings.model_dump(mode="json", exclude_none=True))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, values], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    return holder


async def test_after_kill_9_nothing_runs_on_and_the_next_start_works(stack_settings: Settings) -> None:
    publish(user_tower(USER_TOWER, 1.0), stack_settings.model_repository, "user_tower", 1)
    with hold(stack_settings) as holder:
        running = read_running_stack(stack_settings.data_dir)
        assert running is not None
        assert running.owner_pid == holder.pid
        mark = mark_of(stack_settings.data_dir)
        holder.kill()
    await eventually(lambda: not procfs.marked_processes(mark))
    assert read_running_stack(stack_settings.data_dir) is None
    async with EmbeddedStack(stack_settings) as stack:
        assert segments(mark) == []
        async with InferenceServerClient(stack.settings.triton_url) as client:
            assert await client.is_model_ready("user_tower", "1", client_timeout=30.0)


async def test_what_a_crash_left_is_removed_by_the_next_start(stack_settings: Settings) -> None:
    publish(user_tower(USER_TOWER, 1.0), stack_settings.model_repository, "user_tower", 1)
    with hold(stack_settings) as holder:
        mark = mark_of(stack_settings.data_dir)
        # Everything is killed at once: nobody is left to tidy up.
        holder.send_signal(signal.SIGSTOP)
        procfs.kill_marked(mark)
        holder.kill()
    assert segments(mark)
    assert (stack_settings.data_dir / "run" / "stack.json").exists()
    async with EmbeddedStack(stack_settings):
        assert segments(mark) == []
        assert mark_of(stack_settings.data_dir) != mark


async def test_ctrl_c_stops_everything(stack_settings: Settings) -> None:
    publish(user_tower(USER_TOWER, 1.0), stack_settings.model_repository, "user_tower", 1)
    with hold(stack_settings) as holder:
        running = read_running_stack(stack_settings.data_dir)
        assert running is not None
        assert running.triton_url is not None
        assert running.redis_url is not None
        mark = mark_of(stack_settings.data_dir)
        # What a terminal does: the whole foreground process group gets it.
        os.killpg(holder.pid, signal.SIGINT)
        await asyncio.to_thread(holder.wait, 60)
    log = (stack_settings.data_dir / "logs" / "redis.log").read_text()
    assert "SIGINT" not in log
    ports = [
        int(url.rpartition(":")[2].removesuffix("/0")) for url in (running.triton_url, running.redis_url)
    ]
    assert_nothing_remains(stack_settings, mark, ports)
