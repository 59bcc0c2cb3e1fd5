"""Whether ONNX Runtime answers as torch does, and how long it takes."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keek_server.errors import SetupError
from keek_server.towers.contract import TowerContract
from keek_server.towers.features import Float32Array
from keek_training.sessions import open_session

PARITY_BOUND: Final = 1e-4
"""Largest difference between torch and ONNX, in any element of any golden vector."""

_TIMED_RUNS: Final = 7


def difference(
    session: Any, contract: TowerContract, batches: Sequence[npt.NDArray[Any]], expected: Float32Array
) -> float:
    """The largest difference from `expected`, over all rows of batches of several sizes.

    Raises:
        SetupError: When it is above PARITY_BOUND.
    """
    (spec,) = contract.inputs
    found = np.concatenate([session.run([contract.output.name], {spec.name: batch})[0] for batch in batches])
    worst = float(np.max(np.abs(found - expected)))
    # Written so that NaN is refused as well.
    if not worst <= PARITY_BOUND:
        raise SetupError(
            f"{contract.model}: ONNX and torch differ by {worst:.1e}, at most {PARITY_BOUND:.0e} may be"
        )
    return worst


def ms_per_row(path: Path, contract: TowerContract, batch: npt.NDArray[Any], threads: int) -> float:
    """Median time of one row of a batch, in milliseconds."""
    session = open_session(path, threads)
    (spec,) = contract.inputs
    times = []
    for _ in range(_TIMED_RUNS + 1):
        started = time.perf_counter()
        session.run(None, {spec.name: batch})
        times.append(time.perf_counter() - started)
    return round(statistics.median(times[1:]) * 1000 / len(batch), 3)
