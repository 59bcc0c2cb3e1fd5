"""New versions in Triton's model repository: written aside, renamed, loaded."""

import asyncio
import logging
import shutil
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import grpc
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException

from keek_server.errors import KeekError, SetupError, UnavailableError
from keek_server.files import sha256_of, sync, written_aside
from keek_server.releases.manifest import TowerVersion
from keek_server.settings import Settings
from keek_server.towers.channel import DIRECT
from keek_server.towers.contract import MODELS, TowerContract
from keek_server.towers.control import control_headers

logger = logging.getLogger(__name__)

MODEL_FILE = "model.onnx"
ASIDE = ".tmp"
"""Ends the name of a folder that is not complete."""
_RESERVED = "last_version"

_LOAD_DEADLINE_S = 120.0


def next_version(repository: Path, last: int = 0) -> int:
    """A number that no model has used yet, the same for all that get a new version.

    Args:
        repository: The model repository.
        last: The highest that any release had: Triton must never get another file under a known number.

    Raises:
        SetupError: When what was written down of earlier numbers is damaged.
    """
    numbers = [int(path.name) for path in repository.glob("*/*") if path.name.isdecimal()]
    return max([last, _reserved(repository), *numbers]) + 1


def reserve_version(repository: Path, version: int) -> None:
    """Writes down that a number is taken: it stays so when the models that had it have gone."""
    if version <= _reserved(repository):
        return
    path = repository / _RESERVED
    with written_aside(path, path.with_name(f"{_RESERVED}.tmp")) as file:
        file.write(f"{version}\n".encode())


def _reserved(repository: Path) -> int:
    path = repository / _RESERVED
    try:
        return int(path.read_text("utf-8"))
    except FileNotFoundError:
        return 0
    except ValueError as error:
        raise SetupError(f"{path} should hold the last version number: {error}") from error


def write_version(repository: Path, tower: TowerContract, version: int, model: Path) -> TowerVersion:
    """Puts `model` into the repository as one version of `tower`.

    The folder appears under its number only when it is complete and on the disk; one that is there stays,
    if it holds the same file. No other publisher may be under way: what it has not renamed yet would be
    removed.

    Raises:
        SetupError: When the repository is none, or the version is there with another file.
    """
    folder = repository / tower.model
    if not (folder / "config.pbtxt").is_file():
        raise SetupError(f"{folder} holds no config.pbtxt: is {repository} the model repository?")
    remove_aside(folder)
    final = folder / str(version)
    if final.exists():
        return _same_version(final / MODEL_FILE, version, model)
    aside = folder / f"{version}{ASIDE}"
    aside.mkdir()
    copy = aside / MODEL_FILE
    shutil.copyfile(model, copy)
    entry = _entry(copy, version)
    publish_folder(aside, final)
    return entry


def _same_version(copy: Path, version: int, model: Path) -> TowerVersion:
    if not copy.is_file() or sha256_of(copy) != sha256_of(model):
        raise SetupError(f"{copy.parent} is there already, and is not {model}: publish again")
    return _entry(copy, version)


def _entry(copy: Path, version: int) -> TowerVersion:
    return TowerVersion(version=version, sha256=sha256_of(copy), size_bytes=copy.stat().st_size)


def publish_folder(aside: Path, final: Path) -> None:
    """Renames a complete folder to the name that readers look for; its files reach the disk first."""
    for path in (*aside.iterdir(), aside):
        sync(path)
    aside.rename(final)
    sync(final.parent)


def prune_versions(repository: Path, in_use: Iterable[Mapping[str, TowerVersion]], version: int) -> None:
    """Removes the versions up to `version` that nothing uses; the next load drops them from Triton.

    Args:
        repository: The model repository.
        in_use: The versions, by model, of each release that may serve, the new one included. Their
            numbers need not be the same for all models.
        version: The newest; a newer one may be another publisher's.
    """
    used = _used(in_use)
    for folder in _versions(repository):
        if int(folder.name) <= version and _key(folder) not in used:
            try:
                remove(folder)
            except OSError as error:
                logger.warning("a version that is not needed any more stays: %s", error)


def remove_broken(repository: Path, in_use: Iterable[Mapping[str, TowerVersion]]) -> None:
    """Removes the versions without a file: beside one, Triton loads no version of a model.

    No publisher leaves one, since a version gets and loses its number as a whole; what else empties a
    folder may. No other publisher may be under way.

    Args:
        repository: The model repository.
        in_use: See `prune_versions`.

    Raises:
        SetupError: When a release needs one: Triton, which may have it loaded, would drop it.
    """
    used = _used(in_use)
    for folder in _versions(repository):
        if (folder / MODEL_FILE).is_file():
            continue
        if _key(folder) in used:
            raise SetupError(f"{folder} has lost its {MODEL_FILE}, which a release needs: restore it")
        logger.warning("%s holds no %s and is removed", folder, MODEL_FILE)
        remove(folder)


def _versions(repository: Path) -> list[Path]:
    """The folders of all versions of all models."""
    folders = (folder for each in MODELS for folder in (repository / each.model).glob("*"))
    return [folder for folder in folders if folder.name.isdecimal()]


def _used(releases: Iterable[Mapping[str, TowerVersion]]) -> set[tuple[str, int]]:
    return {(model, entry.version) for release in releases for model, entry in release.items()}


def _key(folder: Path) -> tuple[str, int]:
    return folder.parent.name, int(folder.name)


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
        UnavailableError: When Triton is gone, also if the model is why; the version is taken out, too.
    """
    try:
        await load_models(settings, models)
    except KeekError:
        with suppress(KeekError):
            await withdraw_version(settings, version, models)
        raise


async def withdraw_version(settings: Settings, version: int, models: Collection[str]) -> None:
    """Takes a version of some models out of the repository and out of Triton; the others go on.

    Raises:
        KeekError: When Triton cannot be reached; then it has the version until its next load.
    """
    models = [model for model in models if (settings.model_repository / model / str(version)).is_dir()]
    await asyncio.to_thread(_remove_version, settings.model_repository, version, models)
    errors = []
    for model in models:
        try:
            await load_models(settings, [model])
        except KeekError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _remove_version(repository: Path, version: int, models: Iterable[str]) -> None:
    for model in models:
        with suppress(OSError):
            remove(repository / model / str(version))


def remove(folder: Path) -> None:
    """Removes a folder that others may read at any time: they find all of it, or none.

    Raises:
        OSError: When something of it cannot be removed; nobody finds it all the same.
    """
    shutil.rmtree(folder.rename(folder.with_name(f"{folder.name}{ASIDE}")))


def remove_aside(folder: Path) -> None:
    """Removes what somebody who ended before it was complete left in a folder of folders.

    An error is logged and no more: nobody reads it, and no number is used twice.
    """
    for left_over in folder.glob(f"*{ASIDE}"):
        if left_over.is_dir():
            try:
                shutil.rmtree(left_over)
            except OSError as error:
                logger.warning("what was left aside stays: %s", error)


def _has_versions(settings: Settings, model: str) -> bool:
    return any(path.name.isdecimal() for path in (settings.model_repository / model).iterdir())


async def load_models(settings: Settings, models: Collection[str]) -> None:
    """Has Triton run exactly the versions of some models that are in the repository.

    Raises:
        SetupError: When it refuses.
        UnavailableError: When it cannot be reached, or is late.
    """
    headers = control_headers(settings.triton_control_token)
    async with triton.InferenceServerClient(settings.triton_url, channel_args=[DIRECT]) as client:
        for model in models:
            try:
                # A model without any version cannot be loaded: nothing uses it then.
                change = client.load_model if _has_versions(settings, model) else client.unload_model
                await change(model, headers=headers, client_timeout=_LOAD_DEADLINE_S)
            except (InferenceServerException, grpc.RpcError) as error:
                kind = UnavailableError if _is_gone(error) else SetupError
                raise kind(f"Triton does not load {model}: {error}") from error


def _is_gone(error: InferenceServerException | grpc.RpcError) -> bool:
    status = error.status() if isinstance(error, InferenceServerException) else None
    return status in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
