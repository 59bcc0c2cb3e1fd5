"""Rows of a tower's inputs."""

import numpy as np

from keek_server.towers.contract import USER_TOWER, TowerContract
from keek_server.towers.features import Tensors


def longest_row(contract: TowerContract, inputs: Tensors) -> Tensors:
    """The one row that takes longest: a full history, or any video."""
    row = 0
    if contract == USER_TOWER:
        row = int(np.argmax(np.count_nonzero(inputs["history_kinds"], axis=1)))
    return {name: values[row : row + 1] for name, values in inputs.items()}
