"""New versions in Triton's model repository: written aside, renamed, loaded."""

import hashlib
import shutil
from pathlib import Path

import grpc
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

from keek_server.errors import SetupError
from keek_server.files import sync
from keek_server.releases.manifest import TowerVersion
from keek_server.settings import Settings
from keek_server.towers.contract import TOWERS, TowerContract
from keek_server.towers.control import control_headers

MODEL_FILE = "model.onnx"
VERSIONS_KEPT = 3
"""Newest versions of a model that stay in the repository: the live one and two to go back to."""

_LOAD_DEADLINE_S = 120.0


def next_version(repository: Path) -> int:
    """A number that no tower in the repository has used yet, the same for all of them."""
    numbers = [int(path.name) for path in repository.glob("*/*") if path.name.isdecimal()]
    return max(numbers, default=0) + 1


def write_version(repository: Path, tower: TowerContract, version: int, model: Path) -> TowerVersion:
    """Puts `model` into the repository as one version of `tower`.

    The folder appears under its number only when it is complete and on the disk.
    """
    folder = repository / tower.model
    if not (folder / "config.pbtxt").is_file():
        raise SetupError(f"{folder} holds no config.pbtxt: is {repository} the model repository?")
    for left_over in folder.glob("*.tmp"):
        shutil.rmtree(left_over)
    aside = folder / f"{version}.tmp"
    aside.mkdir()
    content = model.read_bytes()
    (aside / MODEL_FILE).write_bytes(content)
    publish_folder(aside, folder / str(version))
    return TowerVersion(version=version, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def publish_folder(aside: Path, final: Path) -> None:
    """Renames a complete folder to the name that readers look for; its files reach the disk first."""
    for path in (*aside.iterdir(), aside):
        sync(path)
    aside.rename(final)
    sync(final.parent)


def prune_versions(repository: Path) -> None:
    """Removes the oldest versions beyond VERSIONS_KEPT; the next load drops them from Triton."""
    for tower in TOWERS:
        folders = [path for path in (repository / tower.model).iterdir() if path.name.isdecimal()]
        for folder in sorted(folders, key=lambda path: int(path.name))[:-VERSIONS_KEPT]:
            shutil.rmtree(folder)


async def load_version(settings: Settings, version: int) -> None:
    """Has Triton load one version of all towers, without a gap for those that it has loaded.

    Raises:
        SetupError: When Triton refuses: no access to its control API, or a model that it cannot
            load. The version is taken out of the repository again: at its next start, Triton
            would serve no version at all of a model that has a broken one.
    """
    try:
        await _load_towers(settings)
    except SetupError:
        for tower in TOWERS:
            shutil.rmtree(settings.model_repository / tower.model / str(version), ignore_errors=True)
        raise


async def _load_towers(settings: Settings) -> None:
    headers = control_headers(settings.triton_control_token)
    async with triton.InferenceServerClient(settings.triton_url) as client:
        for tower in TOWERS:
            try:
                await client.load_model(tower.model, headers=headers, client_timeout=_LOAD_DEADLINE_S)
            except (InferenceServerException, grpc.RpcError) as error:
                raise SetupError(f"Triton does not load {tower.model}: {error}") from error
