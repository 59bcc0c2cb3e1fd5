"""Rows of a tower's inputs and answers."""

from typing import Any

import numpy as np
import numpy.typing as npt

from keek_server.towers.contract import USER_TOWER, TowerContract
from keek_server.towers.features import Tensors


def longest_row(contract: TowerContract, inputs: Tensors) -> Tensors:
    """The one row that takes longest: a full history, or any video."""
    row = 0
    if contract == USER_TOWER:
        row = int(np.argmax(np.count_nonzero(inputs["history_kinds"], axis=1)))
    return {name: values[row : row + 1] for name, values in inputs.items()}


def fits(answer: npt.NDArray[Any], contract: TowerContract) -> bool:
    """Whether an answer, of however many rows, has the contract's shape, where that is not free."""
    shape = contract.output.shape
    own = answer.shape[1:]
    return len(own) == len(shape) and all(want in (-1, have) for want, have in zip(shape, own, strict=True))
