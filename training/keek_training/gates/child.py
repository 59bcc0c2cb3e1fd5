"""The process that a model is tried in: `python -I -m keek_training.gates.child JOB`.

It imports, reads its inputs, closes the sandbox behind itself and only then reads the first byte of
the model. It says what it found in lines of JSON, one a stage: where they end is where it ended.
"""

import base64
import io
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import onnxruntime

from keek_server.towers.contract import MODELS, USER_TOWER, TowerContract
from keek_server.towers.features import Float32Array, Tensors
from keek_server.videos.decoding.sandbox import close_sandbox, die_with
from keek_training.gates.inspection import identity_model, inspect, session
from keek_training.gates.rows import fits, longest_row
from keek_training.gates.times import undisturbed_ms

_TIMED_S: Final = 2.0
_TIMED_CALLS: Final = (5, 200)
"""The fewest and the most, of each model."""
_PADDED_ROWS: Final = 8
_MESSAGE: Final = 300

Run = Callable[[Tensors], Float32Array]


def main() -> None:
    """One model, one answer."""
    job = json.loads(sys.argv[1])
    die_with(job["parent"])
    given = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    inputs, live_inputs = ({name: given[name] for name in given if name[0] == key} for key in "cl")
    # What ONNX Runtime loads once and for all has to be loaded before the door is shut.
    session(identity_model(8)).run(None, {"x": np.zeros(1, np.float32)})
    flaw = close_sandbox(memory_mb=job["memory_mb"], cpu_s=job["cpu_s"])
    _say("closed", flaw=flaw)
    (contract,) = (tower for tower in MODELS if tower.model == job["tower"])
    try:
        _examine(contract, job, _unprefixed(inputs), _unprefixed(live_inputs))
    except MemoryError:
        _say("failed", message="it takes more memory than a tower may take")
    except Exception as error:  # noqa: BLE001 - whatever goes wrong, this file was the cause
        _say("failed", message=_shortened(" ".join(str(error).split())))
    # No destructors: what is in memory may be as hostile as the file.
    os._exit(0)


def _shortened(text: str) -> str:
    """ONNX Runtime begins with where in its code it was, and ends with what is wrong."""
    return text if len(text) <= _MESSAGE else f"{text[:60]} ... {text[60 - _MESSAGE :]}"


def _examine(contract: TowerContract, job: dict[str, Any], inputs: Tensors, live_inputs: Tensors) -> None:
    content = _read(job["model"])
    found = inspect(content, contract)
    _say("inspected", **asdict(found))
    if not found.may_run:
        return
    run = _runner(session(content, optimised=job["optimised"]), contract)
    del content
    _say("loaded")
    vectors = run(inputs)
    encoded = base64.b64encode(vectors.tobytes()).decode()
    _say("answered", shape=vectors.shape, dtype=str(vectors.dtype), vectors=encoded)
    is_whole = len(vectors) == len(inputs[contract.inputs[0].name]) and fits(vectors, contract)
    if not job["timed"] or not is_whole:
        return
    _say("alone", difference=_alone(run, inputs, vectors), padding=_padding(run, contract, inputs, vectors))
    live = _live(job["live"], contract, live_inputs)
    _say("timed", **_times_ms(run, longest_row(contract, inputs), live, live_inputs))


def _unprefixed(tensors: Tensors) -> Tensors:
    return {name.partition("/")[2]: values for name, values in tensors.items()}


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        return file.read()


def _runner(model: onnxruntime.InferenceSession, contract: TowerContract) -> Run:
    def run(tensors: Tensors) -> Float32Array:
        (answer,) = model.run([contract.output.name], tensors)
        return np.asarray(answer)

    return run


def _live(descriptor: int | None, contract: TowerContract, inputs: Tensors) -> Run | None:
    """The live release's tower; None where it cannot be timed, which the new one is not refused for."""
    if descriptor is None:
        return None
    try:
        live = _runner(session(_read(descriptor)), contract)
        live(inputs)
    except Exception:  # noqa: BLE001 - whatever goes wrong, it has nothing to do with the new one
        return None
    return live


def _alone(run: Run, inputs: Tensors, together: Float32Array) -> float:
    """The largest difference of any element when each row is asked for by itself."""
    rows = [run({name: values[i : i + 1] for name, values in inputs.items()}) for i in range(len(together))]
    return float(np.max(np.abs(np.concatenate(rows) - together)))


def _padding(run: Run, contract: TowerContract, inputs: Tensors, together: Float32Array) -> float:
    """The same without the zeros that pad a history to the longest of the batch."""
    if contract != USER_TOWER:
        return 0.0
    lengths = np.count_nonzero(inputs["history_kinds"], axis=1)
    differences = [0.0]
    for i in np.flatnonzero(lengths)[:_PADDED_ROWS]:
        row = {name: values[i : i + 1] for name, values in inputs.items()}
        row |= {name: values[:, -lengths[i] :] for name, values in row.items() if name != "user"}
        differences.append(float(np.max(np.abs(run(row)[0] - together[i]))))
    return max(differences)


def _times_ms(run: Run, inputs: Tensors, live: Run | None, live_inputs: Tensors) -> dict[str, float | None]:
    """Of both in turn, so that both meet the same machine."""
    pairs = [(run, inputs, list[float]())]
    if live is not None:
        pairs.append((live, live_inputs, []))
    for call, tensors, _ in pairs:
        call(tensors)
    fewest, most = _TIMED_CALLS
    began = time.perf_counter()
    for done in range(most):
        if done >= fewest and time.perf_counter() - began > _TIMED_S:
            break
        for call, tensors, times in pairs:
            started = time.perf_counter()
            call(tensors)
            times.append((time.perf_counter() - started) * 1e3)
    found = [undisturbed_ms(times) for *_, times in pairs]
    return {"ms": found[0], "live_ms": found[1] if live is not None else None}


def _say(stage: str, **values: Any) -> None:
    # Written at once: what ends this process must not take earlier lines with it.
    sys.stdout.write(json.dumps({"stage": stage, **values}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
