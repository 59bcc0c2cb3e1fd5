"""The embedded Triton: the real tritonserver on this machine, serving the committed repository."""

import logging
from pathlib import Path

from pydantic import SecretStr
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from keek_server.embedded import procfs
from keek_server.embedded.ports import HOST, free_port
from keek_server.embedded.service import Command
from keek_server.embedded.triton_environment import TritonEnvironment
from keek_server.towers.channel import DIRECT
from keek_server.towers.control import CONTROL_KEY, CONTROL_PROTOCOLS, control_headers

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is; nothing is made here
_PROBE_TIMEOUT_S = 1.0
# A probe must not inherit the reconnect pause of the probe before.
_PROBE_CHANNEL = [DIRECT, ("grpc.use_local_subchannel_pool", 1)]


class EmbeddedTriton:
    """A `Service` that runs tritonserver on 127.0.0.1 with explicit model control."""

    name = "triton"
    # It ends running inferences at once, but unloading models takes it 1.2 s each, for nothing.
    stop_grace_s = 1.0

    def __init__(
        self,
        environment: TritonEnvironment,
        *,
        backends: Path,
        repository: Path,
        mark: str,
        control_token: SecretStr,
    ) -> None:
        """Finds a port.

        Args:
            environment: Where tritonserver is.
            backends: The backend directory.
            repository: The model repository.
            mark: The stack's random mark: the server's id and its shared memory carry it.
            control_token: What the control API asks for.
        """
        self._environment = environment
        self._backends = backends.absolute()
        self._repository = repository.absolute()
        self._id = f"keek-{mark}"
        self._memory_prefix = shared_memory_prefix(mark)
        self._control_token = control_token
        self._dead_stubs: set[int] = set()
        self.port = free_port()

    @property
    def url(self) -> str:
        """host:port, as tritonclient takes it."""
        return f"{HOST}:{self.port}"

    def choose_port(self) -> None:
        """Takes another port."""
        self.port = free_port()

    def command(self) -> Command:
        """Loads every model that has a version by now."""
        environment = self._environment
        return Command(
            [str(environment.server), *self._options()],
            set={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            prepend={
                "PATH": [str(environment.programs)],
                "LD_LIBRARY_PATH": [str(folder) for folder in environment.libraries],
            },
            drop=["PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"],
        )

    def _options(self) -> list[str]:
        token = self._control_token.get_secret_value()
        return [
            f"--id={self._id}",
            f"--model-repository={self._repository}",
            f"--backend-directory={self._backends}",
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in published_models(self._repository)),
            # A model that cannot be loaded does not take the others down.
            "--exit-on-error=false",
            "--strict-readiness=false",
            # The configuration files are complete; without this each load starts its model twice.
            "--disable-auto-complete-config",
            f"--grpc-address={HOST}",
            f"--grpc-port={self.port}",
            "--allow-http=false",
            "--allow-metrics=false",
            f"--grpc-restricted-protocol={','.join(CONTROL_PROTOCOLS)}:{CONTROL_KEY}={token}",
            f"--backend-config=python,shm-region-prefix-name={self._memory_prefix}",
            # For calls from one model to another, which ours do not make; 32 an instance otherwise.
            "--backend-config=python,thread-pool-size=1",
        ]

    async def ready(self, pid: int) -> bool:
        """Whether the server on the port answers, and is the one that was started here."""
        async with InferenceServerClient(self.url, channel_args=_PROBE_CHANNEL) as client:
            try:
                metadata = await client.get_server_metadata(client_timeout=_PROBE_TIMEOUT_S)
                if metadata.name != self._id or not await client.is_server_ready(
                    client_timeout=_PROBE_TIMEOUT_S
                ):
                    return False
                await self._report_failures(client)
            except InferenceServerException:
                return False
        return True

    async def _report_failures(self, client: InferenceServerClient) -> None:
        index = await client.get_model_repository_index(
            headers=control_headers(self._control_token), client_timeout=_PROBE_TIMEOUT_S
        )
        for model in index.models:
            # The other versions of a model that failed are unloaded with it.
            if model.state == "UNAVAILABLE" and model.reason not in ("", "unloaded"):
                logger.error(
                    "Triton serves no version of %s, because version %s cannot be loaded: %s",
                    model.name,
                    model.version,
                    model.reason,
                )

    def healthy(self, pid: int) -> bool:
        """False when a model's process has died, which Triton itself never mends.

        Triton buries a process of a model that it unloads, so only one that stays unburied
        from one look to the next counts.
        """
        before, self._dead_stubs = self._dead_stubs, procfs.dead_children(pid)
        return not (before & self._dead_stubs)

    def clean(self) -> None:
        """Removes the shared memory of a Triton that was killed."""
        remove_shared_memory(self._memory_prefix)


def published_models(repository: Path) -> list[str]:
    """Models of a repository that have at least one version to serve."""
    versions = (path.parent for path in repository.glob("*/*/model.onnx"))
    return sorted({version.parent.name for version in versions if version.name.isdecimal()})


def shared_memory_prefix(mark: str) -> str:
    """What the names of a stack's shared memory segments begin with."""
    return f"keek_{mark}_"


def remove_shared_memory(prefix: str) -> None:
    """Removes the segments whose names begin with the prefix."""
    for segment in SHARED_MEMORY.glob(f"{prefix}*"):
        segment.unlink(missing_ok=True)
