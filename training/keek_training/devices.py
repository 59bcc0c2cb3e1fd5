"""Training on several devices, and in half precision: what of it is not in the layers."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import numpy as np

from keek_server.errors import SetupError
from keek_server.towers.features import Tensors
from keek_training.backend import keras

_NEVER: Final = 1e9
"""As the logarithm of how often a negative is expected: it weighs nothing."""


def spread_over(devices: int) -> AbstractContextManager[Any]:
    """A scope in which variables are made on each of the first devices, and batches are cut into their parts.

    Gradients are those of the whole batch: several devices come to what one does.

    Raises:
        SetupError: When there are not so many, or the backend is not JAX: what Keras has of it for TensorFlow
            is a sketch.
    """
    if devices == 1:
        return nullcontext()
    if keras.backend.backend() != "jax":
        raise SetupError("training on several devices needs the JAX backend: KERAS_BACKEND=jax")
    names = keras.distribution.list_devices()
    if len(names) < devices:
        raise SetupError(f"{devices} devices are configured, and there are {len(names)}: {', '.join(names)}")
    return keras.distribution.DataParallel(devices=names[:devices]).scope()  # type: ignore[no-any-return]


def padded(batch: Tensors, devices: int) -> Tensors:
    """The batch with all first dimensions filled up to multiples of `devices`, by what weighs nothing."""
    return {name: _padded(name, values, -len(values) % devices) for name, values in batch.items()}


def _padded(name: str, values: Any, missing: int) -> Any:
    if not missing:
        return values
    fill = _NEVER if name == "log_expected" else 0
    return np.pad(values, [(0, missing), *[(0, 0)] * (values.ndim - 1)], constant_values=fill)


def set_precision(layers: list[Any], precision: str) -> None:
    """Gives layers that are not built yet, and all within them, Keras' dtype policy of this name.

    Their variables stay float32. Whatever comes in is cast; what is behind them casts back.
    """
    for layer in layers:
        for own in layer._flatten_layers():  # noqa: SLF001
            own.dtype_policy = precision


def scaled(optimizer: Any, precision: str) -> Any:
    """The optimiser, for float16 behind one that scales the loss, so that small gradients stay above 0."""
    return keras.optimizers.LossScaleOptimizer(optimizer) if precision == "mixed_float16" else optimizer


def step_is_compiled(jit: bool) -> bool:
    """Whether a step is compiled by XLA: on JAX always, where it would be run operation by operation."""
    return jit or keras.backend.backend() == "jax"
