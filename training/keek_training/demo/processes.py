"""Runs Keek's own commands, as a user would type them."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import keek
from keek_server.errors import SetupError

_STOP_S = 30.0
_POLL_S = 0.2


def run_command(*command: str) -> float:
    """Runs a command of this environment to its end, its output shown.

    Returns:
        Seconds it took.

    Raises:
        SetupError: When it failed.
    """
    print(f"\n$ {' '.join(command)}", flush=True)
    started = time.perf_counter()
    code = subprocess.run([_path(command[0]), *command[1:]], check=False).returncode
    if code:
        raise SetupError(f"'{' '.join(command)}' ended with code {code}")
    return time.perf_counter() - started


@contextmanager
def running_server(log: Path, *, timeout_s: float) -> Iterator[str]:
    """`keek-server up` while the block runs; yields its address once it accepts interactions.

    Raises:
        SetupError: When it does not come up in time; names its log.
    """
    address = f"127.0.0.1:{_free_port()}"
    log.parent.mkdir(parents=True, exist_ok=True)
    print(f"\n$ KEEK_LISTEN={address} keek-server up &      # its log: {log}", flush=True)
    with log.open("wb") as output:
        server = subprocess.Popen(
            [_path("keek-server"), "up"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "KEEK_LISTEN": address},
        )
        try:
            _wait_until_up(server, address, log, timeout_s)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_until_serving(client: keek.Client, service: str, *, timeout_s: float) -> float:
    """Waits until a service reports SERVING; returns the seconds it took.

    Raises:
        SetupError: When it does not in time.
    """
    started = time.perf_counter()
    while time.perf_counter() - started < timeout_s:
        try:
            if client.check_health(service):
                return time.perf_counter() - started
        except keek.KeekError:
            pass  # not listening yet
        time.sleep(_POLL_S)
    raise SetupError(f"{service} does not serve after {timeout_s:g} s")


def wait_for_release(client: keek.Client, release_id: str, *, timeout_s: float) -> float:
    """Waits until feeds come from this release; returns the seconds it took.

    Raises:
        SetupError: When they do not in time.
    """
    waited_s = wait_until_serving(client, "keek.v1.FeedService", timeout_s=timeout_s)
    started = time.perf_counter()
    while client.list_feed("u1").release_id != release_id:
        if time.perf_counter() - started > timeout_s:
            raise SetupError(f"the server has not taken release {release_id} over after {timeout_s:g} s")
        time.sleep(_POLL_S)
    return waited_s + time.perf_counter() - started


def _wait_until_up(server: subprocess.Popen[bytes], address: str, log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with keek.Client(address) as client:
        while time.monotonic() < deadline and server.poll() is None:
            try:
                wait_until_serving(client, "keek.v1.InteractionService", timeout_s=1.0)
            except SetupError:
                continue
            return
    tail = log.read_text("utf-8", "replace")[-2000:]
    raise SetupError(f"keek-server did not come up; the end of {log}:\n{tail}")


def _path(command: str) -> str:
    """The command beside the running interpreter, whatever the PATH is."""
    return str(Path(sys.executable).with_name(command))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
