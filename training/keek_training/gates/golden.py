"""Golden inputs, and what the towers must answer to them."""

import zipfile
from dataclasses import dataclass

import numpy as np

from keek_server.errors import SetupError
from keek_server.towers.contract import RANKER, USER_TOWER, TowerContract
from keek_server.towers.features import Float32Array, Tensors
from keek_training.gates.examine import examine
from keek_training.golden import golden_pages, golden_users, golden_videos
from keek_training.publishing.source import TowerSource


@dataclass(frozen=True, slots=True)
class Golden:
    """Golden inputs of one tower."""

    inputs: Tensors
    answers: Float32Array | None
    """float32 [n, DIMENSION]: what was exported answered; None when nobody recorded it."""

    @classmethod
    def of(cls, source: TowerSource, contract: TowerContract) -> "Golden":
        """What export recorded, or the same inputs made anew.

        Raises:
            SetupError: When what export recorded cannot be read.
        """
        path = source.golden_of(contract)
        if path is None:
            return cls(golden_inputs(contract, source.history_length), None)
        try:
            with np.load(path, allow_pickle=False) as file:
                inputs = {spec.name: file[f"{contract.model}/{spec.name}"] for spec in contract.inputs}
                return cls(inputs, np.asarray(file[f"{contract.model}/{contract.output.name}"], np.float32))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise SetupError(f"{path} holds no golden vectors: export again: {error}") from error


def golden_inputs(contract: TowerContract, history_length: int) -> Tensors:
    """Random inputs and the edges, the same each time."""
    if contract == RANKER:
        return golden_pages()
    return golden_users(history_length) if contract == USER_TOWER else golden_videos()


def answers_of(source: TowerSource, contract: TowerContract, golden: Golden) -> Float32Array:
    """What the tower must answer; where nobody recorded it, what ONNX Runtime makes of the graph as it
    stands, on one thread and without optimising it.

    Raises:
        SetupError: When it answers nothing there.
    """
    if golden.answers is not None:
        return golden.answers
    found = examine(source.path(contract), contract, golden.inputs, optimised=False, is_timed=False)
    if found.problem or found.vectors is None:
        raise SetupError(
            f"{contract.model} answers no golden inputs: {found.problem or 'it breaks the contract'}"
        )
    return np.asarray(found.vectors, np.float32)
