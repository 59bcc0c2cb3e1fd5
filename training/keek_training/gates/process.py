"""Starts the process that a model is tried in, and hears what it says."""

import json
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

from keek_server.errors import SetupError

_MODULE = "keek_training.gates.child"
_ENVIRONMENT = {"LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""All that it gets: the publisher's own may hold passwords."""
_MAX_OUTPUT_BYTES = 8 * 2**20


def run_child(job: dict[str, Any], given: bytes, wall_s: float) -> tuple[bytes, int, bool]:
    """Blocks until it has ended.

    Args:
        job: What `child.py` reads; descriptors in it are passed on.
        given: Its standard input.
        wall_s: After so long it is killed.

    Returns:
        The output, the exit code, and whether it had to be killed.

    Raises:
        SetupError: When it cannot be started, which is not the model's fault.
    """
    late = threading.Event()
    with _start(job) as process:

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(wall_s, end)
        timer.start()
        try:
            output = _talk(process, given)
            return output, process.wait(), late.is_set()
        finally:
            process.kill()
            timer.cancel()


def _start(job: dict[str, Any]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-m", _MODULE, json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[d for d in (job["model"], job["live"]) if d is not None],
            env=_ENVIRONMENT,
            cwd="/",
        )
    except OSError as error:
        raise SetupError(f"cannot start the process that tries models: {error}") from error


def _talk(process: "subprocess.Popen[bytes]", given: bytes) -> bytes:
    """Hands over the inputs, and hears at most so much."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("pipes were asked for")
    with suppress(BrokenPipeError):
        process.stdin.write(given)
    with suppress(BrokenPipeError):
        process.stdin.close()
    output = process.stdout.read(_MAX_OUTPUT_BYTES)
    if len(output) >= _MAX_OUTPUT_BYTES:
        process.kill()
    return output
