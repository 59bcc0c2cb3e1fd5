"""The gates before anything is copied or loaded: what the files are, and what they answer when they are
tried in a process that can do no harm."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from keek_server.releases.manifest import GateResult
from keek_server.settings import Settings
from keek_server.towers.contract import RANKER, USER_TOWER, VIDEO_TOWER, TowerContract
from keek_training.gates.examine import Examination, Limits, Live, examine
from keek_training.gates.golden import Golden, golden_inputs
from keek_training.gates.results import at_least, at_most, failed
from keek_training.gates.rows import fits, longest_row
from keek_training.gates.vectors import Moments, difference, vector_gates
from keek_training.publishing.source import TowerSource

_CALL_MS: Final = 0.5
"""What any call of Triton costs: added to both times, so that microseconds refuse nothing."""
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class LiveTowers:
    """The files of the release that serves, in the model repository."""

    user_tower: Path
    video_tower: Path
    history_length: int

    def path(self, tower: TowerContract) -> Path:
        """The file of one tower."""
        return self.video_tower if tower == VIDEO_TOWER else self.user_tower


def preflight(
    source: TowerSource, live: LiveTowers | None, settings: Settings, *, limits: Limits | None = None
) -> list[GateResult]:
    """Blocks for some seconds: looks at both towers, and the ranker if there is one, each up to the first
    gate that makes the next pointless.

    Args:
        source: What is to be published. Its files are read, and nothing that they name.
        live: What serves; its towers are timed in turn with the new ones.
        settings: The bounds.
        limits: What trying one tower may take.

    Raises:
        SetupError: When the golden vectors of a run cannot be read, or no process can be started.
    """
    results: list[GateResult] = []
    for contract in source.models:
        golden = Golden.of(source, contract)
        found = examine(
            source.path(contract),
            contract,
            golden.inputs,
            live=_live(live, contract),
            max_bytes=int(settings.gate_size_mb * _MIB),
            limits=limits,
        )
        results += _judge(contract, found, golden, settings)
    return results


def _live(live: LiveTowers | None, contract: TowerContract) -> Live | None:
    if live is None or contract == RANKER:
        return None
    inputs = golden_inputs(contract, live.history_length)
    return Live(live.path(contract), longest_row(contract, inputs))


def _judge(
    contract: TowerContract, found: Examination, golden: Golden, settings: Settings
) -> Iterator[GateResult]:
    name = contract.model
    size_mb = found.size_bytes / _MIB
    yield at_most("size_mb", size_mb, settings.gate_size_mb, f"{name}: MiB of the file")
    if size_mb > settings.gate_size_mb:
        return
    inspection = found.inspection
    if inspection is None or inspection.problem:
        problem = inspection.problem if inspection else found.problem
        yield failed(at_most("format", 0, 0, ""), f"{name}: only ONNX is taken: {problem}")
        return
    yield at_most("format", 0, 0, f"{name}: an ONNX model")
    external, not_numbers = inspection.external, inspection.not_numbers
    text = f"weights outside the file: {'; '.join(external)}" if external else "all weights are in the file"
    yield at_most("external_data", len(external), 0, f"{name}: {text}")
    yield at_most("opset", inspection.opset, inspection.newest_opset, f"{name}: version of ONNX's operators")
    departures = inspection.departures or _wrong_answer(contract, found)
    text = "; ".join(departures) or "names, dtypes and shapes are those of the contract"
    yield at_most("contract", len(departures), 0, f"{name}: {text}")
    text = f"NaN in the weights {', '.join(not_numbers)}" if not_numbers else "no weight is NaN"
    yield at_most("weights", len(not_numbers), 0, f"{name}: {text}")
    if inspection.may_run and not departures:
        yield from _judge_answers(contract, found, golden, settings)


def _wrong_answer(contract: TowerContract, found: Examination) -> list[str]:
    """A model may declare one shape and answer with another."""
    if found.vectors is None:
        return []
    rows, expected = found.vectors.shape[:1], contract.output.shape
    is_right = fits(found.vectors, contract) and found.vectors.dtype == contract.output.dtype
    what = f"{found.vectors.dtype} {list(found.vectors.shape)}"
    wanted = f"{np.dtype(contract.output.dtype)} {[*rows, *expected]}"
    return [] if is_right else [f"output {contract.output.name} comes out as {what}, expected {wanted}"]


def _judge_answers(
    contract: TowerContract, found: Examination, golden: Golden, settings: Settings
) -> Iterator[GateResult]:
    name, count = contract.model, len(golden.inputs[contract.inputs[0].name])
    if found.vectors is None or found.problem:
        answered = 0 if found.vectors is None else len(found.vectors)
        runs = at_least("runs", answered, count, "")
        yield failed(runs, f"{name}: ONNX Runtime does not get through the golden inputs: {found.problem}")
        return
    yield at_least("runs", len(found.vectors), count, f"{name}: golden inputs that are answered")
    moments = Moments.of(found.vectors)
    yield from vector_gates(f"{name} on golden inputs", moments, settings)
    if np.isfinite(found.vectors).all():
        yield from _judge_differences(contract, found, golden, settings, moments.scale)
    yield _latency(contract, found, settings)


def _judge_differences(
    contract: TowerContract, found: Examination, golden: Golden, settings: Settings, scale: float
) -> Iterator[GateResult]:
    name = contract.model
    alone = float("nan") if found.alone is None else found.alone / scale
    text = f"{name}: largest difference that the other rows of a batch make"
    if contract == USER_TOWER and found.padding is not None:
        text += f"; that the padding of histories makes: {found.padding / scale:.1e}"
    yield at_most("batch", alone, settings.gate_parity, text)
    if golden.answers is not None and found.vectors is not None:
        text = f"{name}: largest difference between ONNX Runtime and what was exported"
        yield at_most("parity", difference(found.vectors, golden.answers), settings.gate_parity, text)


def _latency(contract: TowerContract, found: Examination, settings: Settings) -> GateResult:
    ms = float("nan") if found.ms is None else found.ms
    if found.live_ms is None:
        text = f"{contract.model}: one row in ONNX Runtime, without a live release to compare with"
        return at_most("latency_ms", ms, settings.gate_latency_ms, text)
    return at_most(
        "latency",
        (ms + _CALL_MS) / (found.live_ms + _CALL_MS),
        settings.gate_latency,
        f"{contract.model}: one row takes {ms:.3f} ms in ONNX Runtime, in the live release"
        f" {found.live_ms:.3f} ms, with {_CALL_MS} ms a call on top",
    )
