"""What the end-to-end tests share."""

import importlib.util
import os
import subprocess
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.dependencies import Dependency, Fault
from benchmarks.proxy import Proxy
from patience import UNHURRIED_VARIABLES

import keek.aio
from keek_server.app import App
from keek_server.embedded import EmbeddedStack
from keek_server.embedded.processes import SupervisedProcess
from keek_server.releases.manifest import Manifest
from keek_server.releases.registry import ReleaseRegistry
from keek_server.storage.database import open_database

BIN = Path(__file__).parents[2] / ".venv" / "bin"
WITH_CLIP = importlib.util.find_spec("open_clip") is not None
"""Whether the release has a CLIP, a small untrained one; exporting it needs the extra keek[clip]."""


def command(
    stack: EmbeddedStack,
    *arguments: str,
    timeout_s: float = 300,
    variables: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs one of Keek's commands against the stack, as an engineer would."""
    own = {
        "KEEK_DATA_DIR": str(stack.settings.data_dir),
        "KEEK_MODEL_REPOSITORY": str(stack.settings.model_repository),
        "KEEK_STARTUP_TIMEOUT_S": str(stack.settings.startup_timeout_s),
        **UNHURRIED_VARIABLES,
    }
    return subprocess.run(
        [BIN / arguments[0], *arguments[1:]],
        env={**os.environ, **own, **(variables or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@dataclass
class Served:
    """The stack, a server on it, and a client of that server."""

    stack: EmbeddedStack
    app: App
    client: keek.aio.Client
    address: str


def killed(server: SupervisedProcess[Any] | None) -> AbstractAsyncContextManager[None]:
    """Has a server of the stack killed, and again whenever it is restarted, until the block ends: whatever is
    asked meanwhile may take its time."""
    assert server is not None
    return Dependency("", "", server, Proxy(0)).suffering(Fault.KILLED)


async def active(stack: EmbeddedStack) -> Manifest:
    """The live release's; its `source` is a run that no gate refuses for being worse than what is live."""
    async with open_database(stack.settings) as database:
        release_id = await ReleaseRegistry(database).active()
    assert release_id is not None
    return Manifest.load(stack.settings.release_dir / release_id)
