"""New versions in Triton's model repository: written aside, renamed, loaded."""

import asyncio
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import grpc
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

from keek_server.errors import SetupError
from keek_server.files import sha256_of, sync
from keek_server.releases.manifest import TowerVersion
from keek_server.settings import Settings
from keek_server.towers.contract import CLIP_ENCODERS, TOWERS, TowerContract
from keek_server.towers.control import control_headers

MODEL_FILE = "model.onnx"

_LOAD_DEADLINE_S = 120.0


def next_version(repository: Path, last: int = 0) -> int:
    """A number that no model has used yet, the same for all that get a new version.

    Args:
        repository: The model repository.
        last: The highest that any release had: Triton must never get another file under a known number.
    """
    numbers = [int(path.name) for path in repository.glob("*/*") if path.name.isdecimal()]
    return max([last, *numbers]) + 1


def write_version(repository: Path, tower: TowerContract, version: int, model: Path) -> TowerVersion:
    """Puts `model` into the repository as one version of `tower`.

    The folder appears under its number only when it is complete and on the disk. No other publisher
    may be under way: what it has not renamed yet would be removed.
    """
    folder = repository / tower.model
    if not (folder / "config.pbtxt").is_file():
        raise SetupError(f"{folder} holds no config.pbtxt: is {repository} the model repository?")
    for left_over in folder.glob("*.tmp"):
        shutil.rmtree(left_over)
    aside = folder / f"{version}.tmp"
    aside.mkdir()
    copy = aside / MODEL_FILE
    shutil.copyfile(model, copy)
    entry = TowerVersion(version=version, sha256=sha256_of(copy), size_bytes=copy.stat().st_size)
    publish_folder(aside, folder / str(version))
    return entry


def publish_folder(aside: Path, final: Path) -> None:
    """Renames a complete folder to the name that readers look for; its files reach the disk first."""
    for path in (*aside.iterdir(), aside):
        sync(path)
    aside.rename(final)
    sync(final.parent)


def prune_versions(repository: Path, in_use: Iterable[Mapping[str, TowerVersion]], version: int) -> None:
    """Removes the versions older than `version` that nothing uses; the next load drops them from Triton.

    Args:
        repository: The model repository.
        in_use: The versions, by model, of each release that may serve, the new one included. Their
            numbers need not be the same for all models.
        version: The newest; a newer one may be another publisher's.
    """
    used = {(model, entry.version) for release in in_use for model, entry in release.items()}
    for tower in (*TOWERS, *CLIP_ENCODERS):
        for folder in (repository / tower.model).glob("*"):
            if not folder.name.isdecimal() or int(folder.name) > version:
                continue
            if (tower.model, int(folder.name)) not in used:
                shutil.rmtree(folder)


def check_versions(repository: Path, models: Mapping[str, TowerVersion]) -> None:
    """
    Args:
        repository: The model repository.
        models: The versions, by model, that a release is made of.

    Raises:
        SetupError: When one is not there, or is another file: then no server could take the release over,
            or serve it after Triton's next start.
    """
    for model, entry in models.items():
        path = repository / model / str(entry.version) / MODEL_FILE
        if not path.is_file() or path.stat().st_size != entry.size_bytes:
            raise SetupError(f"{path} has gone, or was changed, while the release was built: publish again")


async def load_version(settings: Settings, version: int, models: Collection[str]) -> None:
    """Has Triton load what is new of some models, without a gap for those that it has loaded.

    Args:
        settings: Where Triton and its repository are.
        version: The number of what is new.
        models: Names of the models.

    Raises:
        SetupError: When Triton refuses: no access to its control API, or a model that it cannot
            load. The version is taken out of the repository again: at its next start, Triton
            would serve no version at all of a model that has a broken one.
    """
    try:
        await load_models(settings, models)
    except SetupError:
        _remove_version(settings.model_repository, version, models)
        raise


async def withdraw_version(settings: Settings, version: int, models: Collection[str]) -> None:
    """Takes a version of some models out of the repository and out of Triton; the others go on.

    Raises:
        SetupError: When Triton cannot be reached; then it has the version until its next load.
    """
    models = [model for model in models if (settings.model_repository / model / str(version)).is_dir()]
    await asyncio.to_thread(_remove_version, settings.model_repository, version, models)
    await load_models(settings, models)


def _remove_version(repository: Path, version: int, models: Iterable[str]) -> None:
    for model in models:
        shutil.rmtree(repository / model / str(version), ignore_errors=True)


def _has_versions(settings: Settings, model: str) -> bool:
    return any(path.name.isdecimal() for path in (settings.model_repository / model).iterdir())


async def load_models(settings: Settings, models: Collection[str]) -> None:
    """Has Triton run exactly the versions of some models that are in the repository.

    Raises:
        SetupError: When it refuses, or cannot be reached.
    """
    headers = control_headers(settings.triton_control_token)
    async with triton.InferenceServerClient(settings.triton_url) as client:
        for model in models:
            try:
                # A model without any version cannot be loaded: nothing uses it then.
                change = client.load_model if _has_versions(settings, model) else client.unload_model
                await change(model, headers=headers, client_timeout=_LOAD_DEADLINE_S)
            except (InferenceServerException, grpc.RpcError) as error:
                raise SetupError(f"Triton does not load {model}: {error}") from error
