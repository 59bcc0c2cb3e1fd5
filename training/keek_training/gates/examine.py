"""Has a model tried in a process of its own, which may do nothing but compute."""

import base64
import io
import json
import logging
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keek_server.errors import SetupError
from keek_server.towers.contract import TowerContract
from keek_server.towers.features import Float32Array, Tensors
from keek_training.gates.inspection import Inspection
from keek_training.gates.process import run_child

logger = logging.getLogger(__name__)

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """What trying one tower may take."""

    cpu_s: int = 60
    """Processor time, in seconds, after the imports."""
    memory_mb: int = 1024
    """MiB of address space, beside six times the size of the files."""

    @property
    def wall_s(self) -> float:
        """A machine that has much else to do gets more time than that."""
        return 4.0 * self.cpu_s + 60.0


@dataclass(frozen=True, slots=True)
class Live:
    """The live release's tower, timed in turn with the new one."""

    path: Path
    inputs: Tensors
    """Of one row."""


@dataclass(slots=True)
class Examination:
    """What the process said, up to where it ended; None where it did not come so far."""

    size_bytes: int = 0
    problem: str = ""
    """Why it ended early; empty when it did not."""
    inspection: Inspection | None = None
    vectors: Float32Array | None = None
    """The answers to all rows, [n, ...]; of whatever shape and dtype the model gives."""
    alone: float | None = None
    """Largest difference of any element between rows together and alone."""
    padding: float | None = None
    """Largest difference of any element that the padding of histories makes."""
    ms: float | None = None
    """Median milliseconds of one row with a full history."""
    live_ms: float | None = None
    stages: list[str] = field(default_factory=list)


def examine(
    path: Path,
    contract: TowerContract,
    inputs: Tensors,
    *,
    live: Live | None = None,
    max_bytes: int | None = None,
    limits: Limits | None = None,
    optimised: bool = True,
    is_timed: bool = True,
) -> Examination:
    """Blocks until the model has been tried.

    Args:
        path: The file.
        contract: Of the tower that it should be.
        inputs: Golden inputs.
        live: What it is timed against.
        max_bytes: A larger file is not read.
        limits: What it may take.
        optimised: Whether ONNX Runtime may rewrite the graph.
        is_timed: Whether more is asked than its answers.

    Raises:
        SetupError: When no process can be started.
    """
    limits = limits or Limits()
    how = {"optimised": optimised, "timed": is_timed}
    try:
        with _opened(path) as (descriptor, size):
            result = Examination(size)
            if max_bytes is not None and size > max_bytes:
                result.problem = "it is too large to be tried"
                return result
            _try(result, descriptor, contract, inputs, live, limits, how)
    except OSError as error:
        return Examination(problem=f"it cannot be read: {error.strerror or error}")
    return result


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, int]]:
    """A descriptor of a regular file, and its size."""
    # A pipe must not make anybody wait.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(0, "it is no regular file")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def _try(
    result: Examination,
    descriptor: int,
    contract: TowerContract,
    inputs: Tensors,
    live: Live | None,
    limits: Limits,
    how: dict[str, bool],
) -> None:
    with ExitStack() as stack:
        live_descriptor, live_bytes = None, 0
        if live is not None:
            # What is gone meanwhile is no reason to refuse anything.
            with suppress(OSError):
                live_descriptor, live_bytes = stack.enter_context(_opened(live.path))
        memory_mb = limits.memory_mb + 6 * (result.size_bytes + live_bytes) // _MIB
        job = {
            "parent": os.getpid(),
            "tower": contract.model,
            "model": descriptor,
            "live": live_descriptor,
            **how,
            "memory_mb": memory_mb,
            "cpu_s": limits.cpu_s,
        }
        given = _packed(inputs, live.inputs if live else {})
        output, code, is_late = run_child(job, given, limits.wall_s)
    _read(result, output)
    if not result.problem and code != 0:
        result.problem = _ending(code, is_late, limits, memory_mb)
    if "closed" not in result.stages:
        last = output.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise SetupError(f"the process that tries models does not start: {last[:300] or result.problem}")


def _packed(inputs: Tensors, live_inputs: Tensors) -> bytes:
    buffer = io.BytesIO()
    tensors = {f"c/{name}": values for name, values in inputs.items()}
    tensors |= {f"l/{name}": values for name, values in live_inputs.items()}
    np.savez(buffer, **tensors)  # type: ignore[arg-type]
    return buffer.getvalue()


def _read(result: Examination, output: bytes) -> None:
    """Takes over what the process said; its words may be the model's by then."""
    for line in output.splitlines():
        with suppress(ValueError, KeyError, TypeError):
            said = json.loads(line)
            _take(result, said)
            result.stages.append(str(said["stage"]))


def _take(result: Examination, said: dict[str, Any]) -> None:
    stage = said.pop("stage")
    match stage:
        case "closed" if said["flaw"]:
            logger.warning(
                "models are tried with limits, but without a filter of system calls: %.200r", said["flaw"]
            )
        case "inspected":
            result.inspection = Inspection(**said)
        case "answered":
            content = base64.b64decode(said["vectors"])
            result.vectors = np.frombuffer(content, said["dtype"]).reshape(said["shape"])
        case "alone":
            result.alone, result.padding = float(said["difference"]), float(said["padding"])
        case "timed":
            result.ms, result.live_ms = said["ms"], said["live_ms"]
        case "failed":
            result.problem = str(said["message"]) or "ONNX Runtime fails on it"
    said["stage"] = stage


def _ending(code: int, is_late: bool, limits: Limits, memory_mb: int) -> str:
    if code == -signal.SIGXCPU:
        return f"it takes more than {limits.cpu_s} s of processor time"
    if is_late:
        return f"it has not answered after {limits.wall_s:g} s"
    name = signal.Signals(-code).name if code < 0 else f"code {code}"
    return f"it ends the process that runs it ({name}), which had {memory_mb} MiB"
