"""Weights of a tower in a file: plain arrays by path, nothing that is executed when it is read."""

from pathlib import Path

import numpy as np

from keek_server.errors import SetupError
from keek_training.backend import Tensor, keras


def save_weights(model: Tensor, path: Path) -> None:
    """Writes every weight of a built model as .npz."""
    np.savez(path, **{name: keras.ops.convert_to_numpy(weight) for name, weight in _by_name(model).items()})


def load_weights(model: Tensor, path: Path) -> None:
    """Reads them into a built model of the same configuration.

    Raises:
        SetupError: When the file does not hold exactly this model's weights.
    """
    weights = _by_name(model)
    with np.load(path, allow_pickle=False) as stored:
        if weights.keys() != set(stored.files):
            raise SetupError(f"{path} holds other weights: {sorted(weights.keys() ^ set(stored.files))}")
        for name, weight in weights.items():
            weight.assign(stored[name])


def _by_name(model: Tensor) -> dict[str, Tensor]:
    """Weights by their path below the model, whichever models hold it in turn."""
    return {_below(weight.path, model.name): weight for weight in model.weights}


def _below(path: str, name: str) -> str:
    """A tower called inside the training model has that model's name first, or instead."""
    parts = path.split("/")
    return "/".join(parts[parts.index(name) + 1 :] if name in parts else parts[1:])
