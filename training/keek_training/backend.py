"""Keras, set up in the one place that imports it.

Keras reads its backend, and TensorFlow its log level, from the environment while they
are imported; a value that the caller has set stays. Importing this module takes
seconds: commands import it when they train or export, not before.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# TensorFlow's start prints a dozen lines of its own, of which a user can use none.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps from stderr what native code prints while it is loaded: that oneDNN is in use ignores the log
    level, and oneDNN is where bfloat16 is fast. Exceptions come through."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


with _silence():
    import keras
    from keras import ops

F = TypeVar("F", bound=Callable[..., Any])

Tensor = Any
"""A tensor of whichever backend is in use; Keras has no type for it."""


def compiled(function: F) -> F:
    """Compiles a part of a step with XLA, where TensorFlow would run it operation by operation.

    On JAX the whole step is compiled anyway.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    wrapped: F = tf.function(function, jit_compile=True)
    return wrapped


__all__ = ["Tensor", "compiled", "keras", "ops"]
