"""Starting the embedded stack: what is refused and why, and how others find a running one."""

import asyncio
import json
import os
import secrets
import socket
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis.asyncio import Redis

from keek_server.embedded import EmbeddedStack, procfs, read_running_stack
from keek_server.embedded.claim import claimed
from keek_server.embedded.processes import SupervisedProcess
from keek_server.embedded.redis import EmbeddedRedis
from keek_server.embedded.running import admin_token_file
from keek_server.embedded.service import Command
from keek_server.embedded.triton_environment import assemble_backends, find_environment
from keek_server.errors import SetupError
from keek_server.settings import Settings


async def test_redis_keeps_everything_in_memory_without_a_limit(stack: EmbeddedStack) -> None:
    assert stack.settings.redis_url is not None
    client = Redis.from_url(stack.settings.redis_url, decode_responses=True)
    wanted = {"save": "", "appendonly": "no", "maxmemory": "0", "protected-mode": "yes", "bind": "127.0.0.1"}
    assert await client.config_get(*wanted) == wanted
    await client.aclose()


async def test_a_second_stack_in_the_same_directory_is_refused_and_the_first_runs_on(
    stack: EmbeddedStack,
) -> None:
    second = stack.settings.model_copy(update={"redis_url": None, "triton_url": None})
    with pytest.raises(SetupError, match="a stack already runs in"):
        async with EmbeddedStack(second):
            pytest.fail("the second stack started")
    assert read_running_stack(stack.settings.data_dir) is not None
    assert stack.settings.redis_url is not None
    client = Redis.from_url(stack.settings.redis_url)
    assert await client.ping()
    await client.aclose()


async def test_another_process_finds_the_running_stack(stack: EmbeddedStack) -> None:
    settings = stack.settings
    program = (
        "import json, sys; from pathlib import Path\n"
        "from keek_server.embedded import read_running_stack; from keek_server.settings import Settings\n"
        "found = read_running_stack(Path(sys.argv[1])).fill(Settings())\n"
        "token = found.triton_control_token.get_secret_value()\n"
        "print(json.dumps([found.redis_url, found.triton_url, token]))"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KEEK_")}
    result = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program, str(settings.data_dir)],
        capture_output=True,
        check=True,
        env=environment,
    )
    assert settings.triton_control_token is not None
    token = settings.triton_control_token.get_secret_value()
    assert json.loads(result.stdout) == [settings.redis_url, settings.triton_url, token]


async def test_the_token_is_for_the_owner_alone(stack: EmbeddedStack) -> None:
    mode = (stack.settings.data_dir / "run" / "stack.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    running = read_running_stack(stack.settings.data_dir)
    assert stack.settings.triton_control_token is not None
    assert stack.settings.triton_control_token.get_secret_value() not in repr(running)


async def test_an_admin_token_is_made_for_the_owner_alone_and_found_by_other_processes(
    stack: EmbeddedStack,
) -> None:
    made = stack.settings.admin_token
    assert made is not None
    path = admin_token_file(stack.settings.data_dir)
    assert path.read_text() == made.get_secret_value() + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    running = read_running_stack(stack.settings.data_dir)
    assert running is not None
    assert made.get_secret_value() not in repr(running)
    assert running.fill(Settings()).admin_token == made


async def test_an_admin_token_that_is_given_is_used_and_written_nowhere(stack_settings: Settings) -> None:
    given = stack_settings.model_copy(update={"admin_token": SecretStr("given"), "triton_url": "127.0.0.1:1"})
    async with EmbeddedStack(given) as stack:
        assert stack.settings.admin_token == SecretStr("given")
        assert not admin_token_file(given.data_dir).exists()
        assert "given" not in (given.data_dir / "run" / "stack.json").read_text()


async def test_the_admin_token_ends_with_the_stack(stack_settings: Settings) -> None:
    settings = stack_settings.model_copy(update={"triton_url": "127.0.0.1:1"})
    tokens = []
    for _ in range(2):
        async with EmbeddedStack(settings) as stack:
            assert stack.settings.admin_token is not None
            tokens.append(stack.settings.admin_token.get_secret_value())
        assert not admin_token_file(settings.data_dir).exists()
        assert stack.settings.admin_token is None
    assert len(set(tokens)) == 2


async def test_a_file_whose_writer_is_gone_is_no_running_stack(stack: EmbeddedStack, tmp_path: Path) -> None:
    assert read_running_stack(tmp_path) is None
    (tmp_path / "run").mkdir()
    answer = json.loads((stack.settings.data_dir / "run" / "stack.json").read_text())
    # The same pid, but a process that started earlier.
    boot, pid, ticks = answer["owner"].split(":")
    answer["owner"] = f"{boot}:{pid}:{int(ticks) - 1}"
    (tmp_path / "run" / "stack.json").write_text(json.dumps(answer))
    assert read_running_stack(tmp_path) is None


async def test_nothing_is_started_or_claimed_when_both_urls_are_given(stack: EmbeddedStack) -> None:
    # The shared stack holds the claim on this very directory.
    async with EmbeddedStack(stack.settings) as outer:
        assert outer.redis is None
        assert outer.triton is None
        assert outer.settings == stack.settings


async def test_only_what_has_no_url_is_started(stack: EmbeddedStack, stack_settings: Settings) -> None:
    settings = stack_settings.model_copy(update={"triton_url": stack.settings.triton_url})
    async with EmbeddedStack(settings) as own:
        assert own.triton is None
        assert own.settings.triton_url == stack.settings.triton_url
        assert own.settings.triton_control_token is None
        assert own.settings.redis_url not in (None, stack.settings.redis_url)


async def test_a_missing_environment_says_run_make_setup(stack_settings: Settings, tmp_path: Path) -> None:
    settings = stack_settings.model_copy(update={"triton_environment": tmp_path / "none"})
    with pytest.raises(SetupError, match=r"none is missing\. Run `make setup`"):
        async with EmbeddedStack(settings):
            pytest.fail("it started")
    assert not (settings.data_dir / "run" / "stack.json").exists()


def fake_environment(root: Path, script: str) -> Path:
    """An environment whose Python is a shell script."""
    python = root / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return root


def test_an_environment_without_triton_says_what_it_lacks(tmp_path: Path) -> None:
    # A Python that sees none of the packages of the environment that it comes from.
    environment = fake_environment(tmp_path, f'exec {sys.executable} -S "$@"')
    with pytest.raises(SetupError, match="lacks nvidia-pytriton, onnxruntime or numpy"):
        find_environment(environment)


def test_a_broken_environment_says_run_make_setup(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"fails with code 9: no such library\. Run `make setup`"):
        find_environment(fake_environment(tmp_path, "echo no such library >&2; exit 9"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"numpy": "2.3.0"}, r"has numpy 2\.3\.0, but Triton needs numpy 1"),
        ({"python_library": None}, r"Install libpython3\.11 or a Python built with --enable-shared"),
        ({"python_version": "3.99"}, r"no backend for Python 3\.99"),
    ],
    ids=["numpy 2", "no shared library", "no stub"],
)
def test_an_unfit_environment_says_why(
    stack_settings: Settings, tmp_path: Path, change: dict[str, str | None], reason: str
) -> None:
    real = find_environment(stack_settings.triton_environment)
    answer = {
        "python_version": "3.11",
        "python_library": "libpython3.11.so.1.0",
        "python_library_folder": None,
        "pytriton": str(real.server.parents[2]),
        "numpy": "1.26.4",
        "onnxruntime": True,
    }
    environment = fake_environment(tmp_path, f"echo '{json.dumps(answer | change)}'")
    with pytest.raises(SetupError, match=reason):
        find_environment(environment)


async def test_a_missing_model_repository_is_named(stack_settings: Settings, tmp_path: Path) -> None:
    settings = stack_settings.model_copy(update={"model_repository": tmp_path / "none"})
    with pytest.raises(SetupError, match="none is missing"):
        async with EmbeddedStack(settings):
            pytest.fail("it started")


def test_the_backend_is_put_together_once_and_again_when_a_part_is_gone(
    stack_settings: Settings, tmp_path: Path
) -> None:
    environment = find_environment(stack_settings.triton_environment)
    first = assemble_backends(environment, tmp_path)
    files = sorted(path.name for path in (first / "onnxruntime").iterdir())
    assert files == [
        "libtriton_python.so",
        "model.py",
        "triton_python_backend_stub",
        "triton_python_backend_utils.py",
    ]
    assert not any(path.is_symlink() for path in (first / "onnxruntime").iterdir())
    changed_ns = (first / "onnxruntime" / "model.py").stat().st_ino
    assert assemble_backends(environment, tmp_path) == first
    assert (first / "onnxruntime" / "model.py").stat().st_ino == changed_ns


@dataclass
class Failing:
    """A service whose program fails as it is told to."""

    script: str
    name: str = "failing"
    port: int = 1
    stop_grace_s: float = 1.0

    def choose_port(self) -> None:
        raise AssertionError("its port is not the problem")

    def command(self) -> Command:
        return Command(["/bin/sh", "-c", self.script])

    async def ready(self, pid: int) -> bool:
        return False

    def healthy(self, pid: int) -> bool:
        return True

    def clean(self) -> None:
        return


@pytest.mark.parametrize(
    ("script", "ready_timeout_s", "reason"),
    [
        ("echo starting; echo no such model >&2; exit 3", 30.0, "exited with code 3"),
        ("echo starting; echo no such model >&2; sleep 60", 3.0, "was not ready within 3 s"),
    ],
    ids=["exits", "hangs"],
)
async def test_a_server_that_never_gets_ready_is_quoted_and_ended(
    tmp_path: Path, script: str, ready_timeout_s: float, reason: str
) -> None:
    mark = secrets.token_hex(8)
    log = tmp_path / "failing.log"
    log.write_text("a line of an earlier start\n")
    child = SupervisedProcess(Failing(script), mark=mark, log_path=log, ready_timeout_s=ready_timeout_s)
    with pytest.raises(SetupError, match=reason) as caught:
        await child.start()
    assert str(caught.value).endswith(f"{log}:\nstarting\nno such model")
    assert procfs.marked_processes(mark) == []


async def test_a_port_that_someone_else_took_is_replaced(tmp_path: Path) -> None:
    service, mark = EmbeddedRedis(tmp_path), secrets.token_hex(8)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        service.port = taken = other.getsockname()[1]
        child = SupervisedProcess(service, mark=mark, log_path=tmp_path / "redis.log", ready_timeout_s=30.0)
        await child.start()
        assert service.port != taken
        client = Redis.from_url(service.url)
        assert await client.ping()
        await client.aclose()
        await child.stop()
    assert procfs.marked_processes(mark) == []


def test_cleaning_up_ends_the_earlier_stack_and_nobody_else(tmp_path: Path) -> None:
    def marked(mark: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["/bin/sleep", "60"], env={procfs.MARK: mark})

    with claimed(tmp_path / "run") as mark:
        pass
    with marked(f"{mark}-triton") as left, marked("f" * 16) as foreign, marked("") as unmarked:
        with claimed(tmp_path / "run"):
            assert left.wait(30) == -9
        assert foreign.poll() is None
        assert unmarked.poll() is None
        foreign.kill()
        unmarked.kill()
