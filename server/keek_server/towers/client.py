"""Asks Triton for vectors. Versions are pinned in every call and checked in every answer."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import grpc
import numpy as np
import numpy.typing as npt
from pydantic import SecretStr
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from keek_server.errors import FailedPreconditionError, SetupError, UnavailableError
from keek_server.settings import Settings
from keek_server.startup import wait_until_ready
from keek_server.towers.channel import DIRECT
from keek_server.towers.contract import TensorSpec, TowerContract
from keek_server.towers.control import control_headers
from keek_server.towers.features import Float32Array, Tensors

_CHECK_DEADLINE_S = 2.0
_LOAD_DEADLINE_S = 120.0
_CHANNEL = (
    DIRECT,
    # A Triton that was restarted is found again at once, not after gRPC's usual minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also how long one attempt may take: gRPC's 20 s would outlast what keeps packets away.
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
_SAID = {"StatusCode.UNAVAILABLE": "no answer", "StatusCode.DEADLINE_EXCEEDED": "deadline exceeded"}


class TowerClient:
    """A connection to Triton, shared by all requests."""

    def __init__(self, client: triton.InferenceServerClient, control_token: SecretStr | None = None) -> None:
        self._client = client
        self._control_headers = control_headers(control_token)

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
            UnavailableError: Triton is gone, late, refuses, another version answered, or not a row for each.
        """
        inputs = [_tensor(spec, features[spec.name]) for spec in tower.inputs]
        output = triton.InferRequestedOutput(tower.output.name)
        result = await self.infer(tower, version, inputs, output, deadline_s=deadline_s)
        vectors: Float32Array = result.as_numpy(tower.output.name)
        row_count = len(features[tower.inputs[0].name])
        if len(vectors) != row_count:
            # Answers are shared out by rows.
            raise UnavailableError(
                f"{tower.model} version {version} gave {len(vectors)} rows, not {row_count}"
            )
        return vectors

    async def infer(
        self,
        tower: TowerContract,
        version: int,
        inputs: Sequence[triton.InferInput],
        output: triton.InferRequestedOutput,
        *,
        deadline_s: float,
    ) -> triton.InferResult:
        """One call with tensors in Triton's own terms: in the message, or in memory shared with it.

        Raises:
            UnavailableError: Triton is gone, late, refuses, or another version answered.
        """
        with _translated(f"Triton, {tower.model} version {version}"):
            result = await self._client.infer(
                tower.model,
                inputs,
                model_version=str(version),
                outputs=[output],
                client_timeout=deadline_s,
            )
        answered = result.get_response().model_version
        if answered != str(version):
            raise UnavailableError(f"asked {tower.model} for version {version}, version {answered} answered")
        return result

    async def max_batch_size(self, tower: TowerContract, version: int) -> int:
        """The most rows that this Triton takes in one call, which may be more than the contract asks for.

        Raises:
            UnavailableError: Triton is gone, or has no such version.
        """
        with _translated(f"Triton, {tower.model} version {version}"):
            answer = await self._client.get_model_config(
                tower.model, str(version), client_timeout=_CHECK_DEADLINE_S
            )
        return int(answer.config.max_batch_size)

    async def share_memory(self, name: str, size_bytes: int) -> None:
        """Has Triton map a shared memory segment of its own machine, which `infer` may then name.

        Raises:
            UnavailableError: Triton has no such segment, or the control token is not the right one.
        """
        with _translated("Triton does not share memory"):
            await self._client.register_system_shared_memory(
                name, f"/{name}", size_bytes, headers=self._control_headers, client_timeout=_CHECK_DEADLINE_S
            )

    async def unshare_memory(self, name: str) -> None:
        """Has Triton unmap a segment. A Triton that is gone has none."""
        with suppress(InferenceServerException, grpc.RpcError):
            await self._client.unregister_system_shared_memory(
                name, headers=self._control_headers, client_timeout=_CHECK_DEADLINE_S
            )

    async def has(self, tower: TowerContract, version: int) -> bool:
        """Whether this version is loaded and ready."""
        try:
            return bool(
                await self._client.is_model_ready(tower.model, str(version), client_timeout=_CHECK_DEADLINE_S)
            )
        except (InferenceServerException, grpc.RpcError):
            return False

    async def check(self, tower: TowerContract, version: int) -> None:
        """Compares what Triton says of a version with the contract.

        Raises:
            SetupError: When names, dtypes or shapes differ; says what was expected.
            UnavailableError: Triton is gone, or has no such version.
        """
        with _translated(f"Triton, {tower.model} version {version}"):
            found = await self._client.get_model_metadata(
                tower.model, str(version), client_timeout=_CHECK_DEADLINE_S
            )
        for what, specs, tensors in (
            ("inputs", tower.inputs, found.inputs),
            ("outputs", (tower.output,), found.outputs),
        ):
            wanted = sorted((spec.name, np_to_triton_dtype(spec.dtype), (-1, *spec.shape)) for spec in specs)
            given = sorted((tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in tensors)
            if given != wanted:
                raise SetupError(
                    f"Triton's {tower.model} version {version} has the {what} {given}, expected {wanted}"
                )

    async def load(self, tower: TowerContract, version: int) -> None:
        """Has Triton load a model as it lies in the repository, and checks that a version came with it.

        Raises:
            UnavailableError: Triton is gone, or refuses.
            FailedPreconditionError: It does not have the version afterwards.
        """
        with _translated(f"Triton does not load {tower.model}"):
            await self._client.load_model(
                tower.model, headers=self._control_headers, client_timeout=_LOAD_DEADLINE_S
            )
        if not await self.has(tower, version):
            raise FailedPreconditionError(
                f"Triton has no version {version} of {tower.model} in its repository"
            )

    async def server_version(self) -> str:
        """The version of the tritonserver."""
        with _translated("Triton does not answer"):
            metadata = await self._client.get_server_metadata(client_timeout=_CHECK_DEADLINE_S)
        return str(metadata.version)


@contextmanager
def _translated(failed: str) -> Iterator[None]:
    """What Triton, or the way to it, fails with inside becomes an UnavailableError that says what failed."""
    try:
        yield
    except (InferenceServerException, grpc.RpcError) as error:
        raise UnavailableError(f"{failed}: {_in_words(error)}") from error


def _in_words(error: Exception) -> str:
    """Without the address where Triton was sought: it may stand in a feed."""
    status = error.status() if isinstance(error, InferenceServerException) else None
    return _SAID.get(str(status), str(error))


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
        yield TowerClient(client, settings.triton_control_token)


def _tensor(spec: TensorSpec, values: npt.NDArray[np.generic]) -> triton.InferInput:
    tensor = triton.InferInput(spec.name, list(values.shape), np_to_triton_dtype(spec.dtype))
    tensor.set_data_from_numpy(values.astype(spec.dtype, copy=False))
    return tensor
