"""Asks Triton for vectors. Versions are pinned in every call and checked in every answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from keek_server.errors import SetupError, UnavailableError
from keek_server.settings import Settings
from keek_server.startup import wait_until_ready
from keek_server.towers.contract import TensorSpec, TowerContract
from keek_server.towers.features import Float32Array, Tensors

_CHECK_DEADLINE_S = 2.0
_CHANNEL = (
    # A Triton that was restarted is found again at once, not after gRPC's usual minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


class TowerClient:
    """A connection to Triton, shared by all requests."""

    def __init__(self, client: triton.InferenceServerClient) -> None:
        self._client = client

    async def vectors(
        self, tower: TowerContract, version: int, features: Tensors, *, deadline_s: float
    ) -> Float32Array:
        """Runs one batch through one version of a tower.

        Args:
            tower: Which tower; says the inputs' names, dtypes and shapes.
            version: The version that must answer.
            features: One tensor an input, [n, ...], n <= tower.max_batch_size.
            deadline_s: For the call.

        Returns:
            float32 [n, DIMENSION].

        Raises:
            UnavailableError: Triton is gone, late, refuses, or another version answered.
        """
        inputs = [_tensor(spec, features[spec.name]) for spec in tower.inputs]
        try:
            result = await self._client.infer(
                tower.model,
                inputs,
                model_version=str(version),
                outputs=[triton.InferRequestedOutput(tower.output.name)],
                client_timeout=deadline_s,
            )
        except (InferenceServerException, grpc.RpcError) as error:
            raise UnavailableError(f"Triton, {tower.model} version {version}: {error}") from error
        answered = result.get_response().model_version
        if answered != str(version):
            raise UnavailableError(f"asked {tower.model} for version {version}, version {answered} answered")
        vectors: Float32Array = result.as_numpy(tower.output.name)
        return vectors

    async def has(self, tower: TowerContract, version: int) -> bool:
        """Whether this version is loaded and ready."""
        try:
            return bool(
                await self._client.is_model_ready(tower.model, str(version), client_timeout=_CHECK_DEADLINE_S)
            )
        except (InferenceServerException, grpc.RpcError):
            return False

    async def server_version(self) -> str:
        """The version of the tritonserver."""
        try:
            metadata = await self._client.get_server_metadata(client_timeout=_CHECK_DEADLINE_S)
        except (InferenceServerException, grpc.RpcError) as error:
            raise UnavailableError(f"Triton does not answer: {error}") from error
        return str(metadata.version)


@asynccontextmanager
async def open_towers(settings: Settings) -> AsyncIterator[TowerClient]:
    """Connects to the Triton at `triton_url`; closed at the end.

    Raises:
        SetupError: When it does not answer within `startup_timeout_s`.
    """
    if settings.triton_url is None:
        raise SetupError("no Triton given: set KEEK_TRITON_URL, or start with 'keek-server up'")
    async with triton.InferenceServerClient(settings.triton_url, channel_args=_CHANNEL) as client:
        await wait_until_ready(
            f"Triton at {settings.triton_url} (KEEK_TRITON_URL)",
            client.is_server_live,
            (InferenceServerException, grpc.RpcError),
            timeout_s=settings.startup_timeout_s,
        )
        yield TowerClient(client)


def _tensor(spec: TensorSpec, values: npt.NDArray[np.generic]) -> triton.InferInput:
    tensor = triton.InferInput(spec.name, list(values.shape), np_to_triton_dtype(spec.dtype))
    tensor.set_data_from_numpy(values.astype(spec.dtype, copy=False))
    return tensor
