"""ONNX Runtime on a CPU."""

from pathlib import Path
from typing import Any

import onnxruntime


def open_session(path: Path, threads: int) -> Any:
    """The model in ONNX Runtime, on so many cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
