"""Keras, set up in the one place that imports it.

Keras reads its backend, and TensorFlow its log level, from the environment while they
are imported; a value that the caller has set stays. Importing this module takes
seconds: commands import it when they train or export, not before.
"""

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# TensorFlow's start prints a dozen lines of its own, of which a user can use none. One of them,
# on oneDNN, ignores the log level and goes only with oneDNN, which gains nothing here: training
# is compiled by XLA.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import keras
from keras import ops

Tensor = Any
"""A tensor of whichever backend is in use; Keras has no type for it."""

__all__ = ["Tensor", "keras", "ops"]
