"""What the containers run beside the server, run here: the scripts, and Triton with its options."""

import asyncio
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from patience import eventually

from keek_server.embedded.ports import free_port
from keek_server.embedded.triton_environment import assemble_backends, find_environment
from keek_server.towers.contract import TOWERS

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))


def init_models(given: Path, repository: Path) -> int:
    """Runs the script as the `models` service does."""
    script = ROOT / "deploy" / "init-models.sh"
    return subprocess.run([script, given, repository], check=False).returncode


def test_the_repository_gets_its_configurations_and_keeps_its_versions(tmp_path: Path) -> None:
    given = ROOT / "model_repository"
    assert init_models(given, tmp_path) == 0
    version = tmp_path / TOWERS[0].model / "1" / "model.onnx"
    version.parent.mkdir()
    version.write_bytes(b"model")
    assert init_models(given, tmp_path) == 0
    assert version.read_bytes() == b"model"
    for tower in TOWERS:
        written = tmp_path / tower.model / "config.pbtxt"
        assert written.read_bytes() == (given / tower.model / "config.pbtxt").read_bytes()


def test_a_configuration_that_differs_is_refused_and_left_alone(tmp_path: Path) -> None:
    changed = tmp_path / TOWERS[0].model / "config.pbtxt"
    changed.parent.mkdir()
    changed.write_text("changed", "utf-8")
    assert init_models(ROOT / "model_repository", tmp_path) == 1
    assert changed.read_text("utf-8") == "changed"


def test_triton_is_ready_for_the_publisher_before_the_first_release(tmp_path: Path) -> None:
    repository, grpc_port, http_port = tmp_path / "models", free_port(), free_port()
    repository.mkdir()
    init_models(ROOT / "model_repository", repository)
    options = [
        option.replace("=/models", f"={repository}")
        .replace("=8001", f"={grpc_port}")
        .replace("=8000", f"={http_port}")
        for option in COMPOSE["services"]["triton-cpu"]["command"][1:]
    ]
    found = find_environment(ROOT / ".venv-triton")
    backends = assemble_backends(found, tmp_path / "backends")
    server = subprocess.Popen(
        [found.server, *options, f"--backend-directory={backends}", "--grpc-address=127.0.0.1"],
        env={"LD_LIBRARY_PATH": ":".join(map(str, found.libraries))},
        stderr=subprocess.DEVNULL,
    )
    try:
        assert wait_until_ready(f"http://127.0.0.1:{http_port}/v2/health/ready", server)
    finally:
        server.terminate()
        server.wait()


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> bool:
    """Asks as the health check does; False when the server ends, or is not ready in two minutes."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            # Not there yet, not ready, or too busy to answer in time.
            time.sleep(0.1)
    return False


async def check_health(port: int, service: str) -> int:
    """Runs the script as the server's health check does."""
    script = ROOT / "deploy" / "check_health.py"
    process = await asyncio.create_subprocess_exec(sys.executable, script, f"127.0.0.1:{port}", service)
    return await process.wait()


@pytest.mark.parametrize(("service", "code"), [("serving", 0), ("not.serving", 1), ("unknown", 1)])
async def test_the_health_check_says_whether_a_service_takes_calls(service: str, code: int) -> None:
    servicer = health.aio.HealthServicer()
    await servicer.set("serving", health_pb2.HealthCheckResponse.SERVING)
    await servicer.set("not.serving", health_pb2.HealthCheckResponse.NOT_SERVING)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()

    async def is_told() -> bool:
        return await check_health(port, service) == code

    try:
        # It is asked again and again: where the machine pauses, an answer may come too late.
        await eventually(is_told)
    finally:
        await server.stop(None)


async def test_the_health_check_fails_when_nothing_listens() -> None:
    assert await check_health(free_port(), "serving") == 1


async def test_the_health_check_asks_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where every container is given one."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    await test_the_health_check_says_whether_a_service_takes_calls("serving", 0)
