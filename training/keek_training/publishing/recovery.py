"""What a publisher that came to no end left: gone on with by the next one of the same, or removed."""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from keek_server.errors import KeekError, NotFoundError, SetupError
from keek_server.files import sha256_of
from keek_server.releases.manifest import Manifest, TowerVersion
from keek_server.releases.plan import ReleaseState
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import Release
from keek_server.retrieval.milvus_store import Milvus
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.storage.tables import activations
from keek_server.towers.contract import MODELS
from keek_server.videos.changes import ChangeFeed
from keek_training.publishing.folders import remove_folders
from keek_training.publishing.journal import Journal
from keek_training.publishing.kept import ready_releases
from keek_training.publishing.repository import (
    MODEL_FILE,
    load_models,
    remove_aside,
    remove_broken,
    withdraw_version,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What there is to go on with."""

    journal: Journal
    release: Manifest | None
    """Its manifest when all files are there and nothing but its activation is missing."""


async def take_up(
    fingerprint: str, terms: str, database: Database, milvus: Milvus | None, settings: Settings
) -> Unfinished | None:
    """Finds what can be gone on with, and removes what cannot. No other publisher may be under way.

    Args:
        fingerprint: Of what is to be published now.
        terms: By what it is to be judged now.
        database: Says what became of the release.
        milvus: Where a part of it may be.
        settings: Say where everything is.

    Raises:
        SetupError: When a model of a release that may serve is gone.
    """
    in_use = [each.by_name for each in await ready_releases(database)]
    await asyncio.to_thread(_remove_halves, settings, in_use)
    journal = Journal.load(settings.release_dir)
    state = await _state(database, journal.release_id) if journal else None
    if (
        journal is None
        or state in (ReleaseState.REFUSED, ReleaseState.REMOVED)
        or await _was_planned(database, journal.release_id)
    ):
        # It came to its end, but for the journal itself.
        Journal.remove(settings.release_dir)
        return None
    if state is None and journal.fingerprint != fingerprint:
        await discard(journal, milvus, settings)
        return None
    release = await _complete(journal, terms, database, milvus, settings)
    if state is ReleaseState.READY and (release is None or journal.fingerprint != fingerprint):
        # It stays ready to be tried; this is to be another one.
        Journal.remove(settings.release_dir)
        return None
    logger.info("going on with release %s, which was not finished", journal.release_id)
    return Unfinished(journal, release)


async def discard(journal: Journal, milvus: Milvus | None, settings: Settings) -> None:
    """Removes all that there is of a release that is not registered; what it cannot, the next one does."""
    folder = settings.release_dir / journal.release_id
    await asyncio.to_thread(remove_folders, [folder] if folder.is_dir() else [])
    await withdraw(journal, settings)
    if milvus is not None:
        try:
            await asyncio.to_thread(milvus.drop, journal.release_id)
        except KeekError as error:
            logger.warning("what Milvus has of release %s stays for now: %s", journal.release_id, error)
            return
    Journal.remove(settings.release_dir)


async def withdraw(journal: Journal, settings: Settings) -> None:
    """Takes the models of a release that is not registered out of the repository and out of Triton."""
    try:
        await withdraw_version(settings, journal.version, [each.model for each in MODELS])
    except KeekError as error:
        logger.warning("Triton keeps version %d for now: %s", journal.version, error)


async def _complete(
    journal: Journal, terms: str, database: Database, milvus: Milvus | None, settings: Settings
) -> Manifest | None:
    """The release when it can be registered and activated as it is; its folder is removed when not."""
    folder = settings.release_dir / journal.release_id
    if not folder.is_dir():
        return None
    try:
        manifest = await asyncio.to_thread(_verified, folder, settings.model_repository, milvus)
        # What servers do not take beside the index has to be in it.
        missed = await ChangeFeed(database).last() - manifest.catalogue_seq
        if journal.terms == terms and missed <= settings.fresh_limit:
            await load_models(settings, _models(manifest))
            return manifest
    except (SetupError, OSError) as error:
        logger.warning("release %s is built again: %s", journal.release_id, error)
    if await _state(database, journal.release_id) is None:
        await asyncio.to_thread(remove_folders, [folder])
    return None


def _models(manifest: Manifest) -> dict[str, TowerVersion]:
    return {contract.model: entry for contract, entry in manifest.models.items()}


def _verified(folder: Path, repository: Path, milvus: Milvus | None) -> Manifest:
    manifest = Manifest.load(folder)
    files = {folder / name: sha256 for name, sha256 in manifest.files_sha256.items()}
    for model, entry in _models(manifest).items():
        files[repository / model / str(entry.version) / MODEL_FILE] = entry.sha256
    for path, sha256 in files.items():
        if sha256_of(path) != sha256:
            raise SetupError(f"{path} is damaged")
    # What is in Milvus has no checksum: it is there, and whole.
    Release.open(folder, milvus=milvus)
    return manifest


def _remove_halves(settings: Settings, in_use: Iterable[Mapping[str, TowerVersion]]) -> None:
    for each in MODELS:
        remove_aside(settings.model_repository / each.model)
    remove_broken(settings.model_repository, in_use)
    remove_aside(settings.release_dir)


async def _state(database: Database, release_id: str) -> ReleaseState | None:
    try:
        return (await ReleaseRegistry(database).get(release_id)).state
    except NotFoundError:
        return None


async def _was_planned(database: Database, release_id: str) -> bool:
    """Whether it ever served or was tried: it is not brought back by a publisher then."""
    c = activations.c
    query = sa.select(c.seq).where((c.release_id == release_id) | (c.trial_release_id == release_id)).limit(1)
    async with database.read() as connection:
        return (await connection.execute(query)).first() is not None
