"""Lanes: ways for large batches to one tower, each with one batch under way at a time.

A Triton on the same machine reads the tensors from memory that it shares with the caller,
which takes a third of the time of the caller and of Triton that messages take. Where it
cannot, because it runs elsewhere or because the control token is missing, they go by message.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import aio as triton
from tritonclient.utils import np_to_triton_dtype

from keek_server.errors import UnavailableError
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import TensorSpec, TowerContract
from keek_server.towers.features import Float32Array, Tensors
from keek_server.towers.shared_memory import SharedMemory

logger = logging.getLogger(__name__)

_ALIGNMENT = 64


class Lane(Protocol):
    """One batch after the other to one version of a tower."""

    def load(self, features: Tensors) -> None:
        """Takes the next batch, one tensor an input, [n, ...]; from any thread."""
        ...

    async def vectors(self, *, deadline_s: float) -> Float32Array:
        """The vectors of the batch: float32 [n, DIMENSION], valid until the next `load`.

        Raises:
            UnavailableError: See `TowerClient.vectors`.
        """
        ...


@asynccontextmanager
async def open_lanes(
    towers: TowerClient, tower: TowerContract, version: int, *, count: int, rows: int, free: int
) -> AsyncIterator[Sequence[Lane]]:
    """Opens lanes, all of one kind.

    Args:
        towers: The connection.
        tower: Which tower.
        version: The version that must answer.
        count: Lanes.
        rows: The most rows of a batch.
        free: The largest size of each dimension that the contract leaves free.
    """
    lane_bytes = sum(_size_bytes(spec, rows, free) for spec in (*tower.inputs, tower.output))
    memory = await _shared(towers, count * lane_bytes)
    if memory is None:
        yield [_MessageLane(towers, tower, version) for _ in range(count)]
        return
    try:
        yield [_SharedLane(towers, tower, version, memory, i * lane_bytes, lane_bytes) for i in range(count)]
    finally:
        await towers.unshare_memory(memory.name)


async def _shared(towers: TowerClient, size_bytes: int) -> SharedMemory | None:
    """Memory that Triton has mapped as well; None when it cannot."""
    try:
        memory = SharedMemory(size_bytes)
    except OSError as error:
        logger.info("tensors go to Triton by message: no shared memory here: %s", error)
        return None
    # Once Triton has mapped it, or never will, it needs no name: nothing is left of it after a crash.
    with memory:
        try:
            await towers.share_memory(memory.name, size_bytes)
        except UnavailableError as error:
            logger.info("tensors go to Triton by message: %s", error)
            return None
    return memory


class _MessageLane:
    def __init__(self, towers: TowerClient, tower: TowerContract, version: int) -> None:
        self._towers, self._tower, self._version = towers, tower, version
        self._features: Tensors = {}

    def load(self, features: Tensors) -> None:
        self._features = features

    async def vectors(self, *, deadline_s: float) -> Float32Array:
        return await self._towers.vectors(self._tower, self._version, self._features, deadline_s=deadline_s)


class _SharedLane:
    def __init__(
        self,
        towers: TowerClient,
        tower: TowerContract,
        version: int,
        memory: SharedMemory,
        start: int,
        size_bytes: int,
    ) -> None:
        self._towers, self._tower, self._version = towers, tower, version
        self._memory, self._start, self._end = memory, start, start + size_bytes
        self._inputs: list[triton.InferInput] = []
        self._output = triton.InferRequestedOutput(tower.output.name)
        self._vectors = np.empty((0, *tower.output.shape), np.float32)

    def load(self, features: Tensors) -> None:
        self._inputs.clear()
        place = self._start
        for spec in self._tower.inputs:
            values = features[spec.name]
            view = self._view(place, spec.dtype, values.shape)
            view[...] = values
            tensor = triton.InferInput(spec.name, list(values.shape), np_to_triton_dtype(spec.dtype))
            tensor.set_shared_memory(self._memory.name, view.nbytes, place)
            self._inputs.append(tensor)
            place += _aligned(view.nbytes)
        output = self._tower.output
        rows = len(features[self._tower.inputs[0].name])
        self._vectors = self._view(place, output.dtype, (rows, *output.shape))
        self._output.set_shared_memory(self._memory.name, self._vectors.nbytes, place)

    async def vectors(self, *, deadline_s: float) -> Float32Array:
        await self._towers.infer(
            self._tower, self._version, self._inputs, self._output, deadline_s=deadline_s
        )
        return self._vectors

    def _view(self, start: int, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        end = start + np.dtype(dtype).itemsize * prod(shape)
        if end > self._end:
            raise ValueError(f"{self._tower.model}: a batch needs more than its lane has")
        return self._memory.bytes[start:end].view(dtype).reshape(shape)


def _size_bytes(spec: TensorSpec, rows: int, free: int) -> int:
    """What the tensor of a batch takes at most."""
    return _aligned(np.dtype(spec.dtype).itemsize * rows * prod(free if d < 0 else d for d in spec.shape))


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT
