"""How long towers take in Triton, one row a call, two versions in turn."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from keek_server.towers.client import TowerClient
from keek_server.towers.contract import TowerContract
from keek_server.towers.features import Tensors
from keek_training.gates.golden import golden_inputs
from keek_training.gates.measured import Measured
from keek_training.gates.rows import longest_row

_WARM_UP: Final = 3
_CALLS: Final = (5, 100)
"""The fewest and the most, of each version."""
_LONGEST_S: Final = 5.0
_DEADLINE_S: Final = 5.0

Times = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Timed:
    """One version, and what it is asked."""

    version: int
    inputs: Tensors

    @classmethod
    def of(cls, release: Measured, tower: TowerContract) -> "Timed":
        """One row with a history as long as the release reads."""
        inputs = longest_row(tower, golden_inputs(tower, release.history_length))
        return cls(release.version(tower), inputs)


async def times_ms(towers: TowerClient, tower: TowerContract, versions: Sequence[Timed]) -> list[Times]:
    """Milliseconds of each call, by version. All are called in turn, so that they meet the same machine.

    Raises:
        UnavailableError: When one does not answer within seconds.
    """
    times: list[list[float]] = [[] for _ in versions]
    fewest, most = _CALLS
    began = time.perf_counter()
    for done in range(most + _WARM_UP):
        if done >= fewest + _WARM_UP and time.perf_counter() - began > _LONGEST_S:
            break
        for timed, own in zip(versions, times, strict=True):
            started = time.perf_counter()
            await towers.vectors(tower, timed.version, timed.inputs, deadline_s=_DEADLINE_S)
            own.append((time.perf_counter() - started) * 1e3)
    return [np.array(own[_WARM_UP:]) for own in times]
