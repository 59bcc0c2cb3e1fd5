"""Publishing: one path from two towers to the active release.

Gates come before anything reaches Triton, and again before anything is registered. Everything is
written aside and renamed, a journal says what is under way, and activation comes last: a crash at
any point leaves the old release serving, and the next publisher goes on, or removes what it left.
Then what no release needs any more is removed.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from keek_server.errors import FailedPreconditionError, KeekError, SetupError, UnavailableError
from keek_server.releases.alias import point_alias
from keek_server.releases.fleet import Fleet
from keek_server.releases.manifest import Manifest
from keek_server.releases.plan import ReleaseState
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import clip_is_read
from keek_server.retrieval.milvus_store import Milvus, open_milvus
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.towers.client import TowerClient, open_towers
from keek_server.towers.contract import MODELS
from keek_training.gates.verdict import RefusedError
from keek_training.publishing.announcing import bring_out
from keek_training.publishing.building import Built, build, write_release
from keek_training.publishing.catalogue import Catalogue, read_catalogue
from keek_training.publishing.clip import ClipSource, choose_clip
from keek_training.publishing.examination import Examination
from keek_training.publishing.folders import outdated_folders, remove_folders
from keek_training.publishing.journal import Inputs, Journal, terms_of
from keek_training.publishing.kept import active_release, kept_releases, ready_releases
from keek_training.publishing.lock import publishing_in_turn
from keek_training.publishing.milvus import PATIENT_S, drop_outdated
from keek_training.publishing.models import publish_models
from keek_training.publishing.recovery import Unfinished, discard, take_up, withdraw
from keek_training.publishing.repository import load_models, next_version, prune_versions, reserve_version
from keek_training.publishing.source import TowerSource

logger = logging.getLogger(__name__)


class HeldUpError(KeekError):
    """What is planned by now must not be changed by a release that was begun before."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """How something is to be published."""

    clip: str | None = None
    """Name of the exported CLIP that the release gets; see `choose_clip`."""
    forced_reason: str = ""
    """Why it is published although a gate refuses it; empty when it must not."""
    activate: bool = True
    """Whether it serves everyone at once; otherwise it is ready to be tried."""
    after_seq: int | None = None
    """It is activated only while this is still the newest plan."""
    wait_s: float = 0.0
    """How long to wait for somebody else who publishes."""


async def publish(source: TowerSource, settings: Settings, wishes: Wishes = Wishes()) -> Manifest:
    """Publishes two towers, and activates them; goes on where an earlier call with the same files ended.

    Raises:
        RefusedError: When a gate refuses the release; it is registered as refused.
        HeldUpError: When the plan is not the one of `after_seq` any more; the release stays ready, and the
            next call with the same files activates it.
        SetupError: When somebody else publishes, the CLIP is not exported, the catalogue is empty, or
            Triton refuses a model.
        UnavailableError: When Triton, the database or Milvus fails on the way; the next call goes on.
    """
    async with (
        publishing_in_turn(settings, source.name, wait_s=wishes.wait_s),
        open_database(settings) as database,
        open_towers(settings) as towers,
    ):
        with open_milvus(settings, PATIENT_S) as milvus:
            return await _Publisher(source, wishes, towers, database, milvus, settings).run()


class _Publisher:
    def __init__(
        self,
        source: TowerSource,
        wishes: Wishes,
        towers: TowerClient,
        database: Database,
        milvus: Milvus | None,
        settings: Settings,
    ) -> None:
        self._source = source
        self._wishes = wishes
        self._towers = towers
        self._database = database
        self._milvus = milvus
        self._settings = settings
        self._registry = ReleaseRegistry(database)

    async def run(self) -> Manifest:
        settings, wishes = self._settings, self._wishes
        live = await active_release(self._database)
        clip = choose_clip(wishes.clip, live, settings)
        inputs = await asyncio.to_thread(Inputs.of, self._source, clip)
        terms = terms_of(self._source.name, live.release_id if live else None, wishes.forced_reason, settings)
        unfinished = await take_up(inputs.fingerprint, terms, self._database, self._milvus, settings)
        release = unfinished.release if unfinished else None
        if release is None:
            journal = await self._journal(inputs, terms, unfinished)
            examination = Examination(
                self._source,
                journal.release_id,
                live,
                settings,
                inputs.sha256,
                wishes.forced_reason,
                self._milvus,
            )
            release = await self._build(journal, examination, clip)
        await self._serve(release)
        await self._tidy(release.user_tower.version)
        return release

    async def _journal(self, inputs: Inputs, terms: str, unfinished: Unfinished | None) -> Journal:
        if unfinished is not None:
            return unfinished.journal.model_copy(update={"terms": terms})
        version = next_version(self._settings.model_repository, await self._registry.last_version())
        release_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{version}"
        return Journal(release_id=release_id, version=version, fingerprint=inputs.fingerprint, terms=terms)

    async def _build(self, journal: Journal, examination: Examination, clip: ClipSource | None) -> Manifest:
        settings = self._settings
        built: Built | None = None
        try:
            catalogue = await self._catalogue(clip)
            await examination.before_loading()
            built = await self._load_and_embed(journal, examination, clip, catalogue)
            await examination.before_serving(built.measured, self._database, self._towers)
            return await asyncio.to_thread(
                write_release, built, clip, examination, settings.release_dir, settings.model_repository
            )
        except UnavailableError:
            # Nothing stays loaded that may never serve; what took long stays on the disk.
            await withdraw(journal, settings)
            logger.warning("release %s is not finished: publish again to go on with it", journal.release_id)
            raise
        except KeekError as error:
            await discard(journal, self._milvus, settings)
            if isinstance(error, RefusedError):
                refused = built.manifest(examination, {}) if built else examination.candidate(journal.version)
                await self._registry.register(refused, ReleaseState.REFUSED)
            raise

    async def _catalogue(self, clip: ClipSource | None) -> Catalogue:
        own = clip.record.clip_model if clip else ""
        catalogue = await read_catalogue(self._database, lambda clip_model: clip_is_read(clip_model, own))
        if not catalogue.video_ids:
            raise SetupError("the catalogue is empty: import videos first")
        return catalogue

    async def _load_and_embed(
        self, journal: Journal, examination: Examination, clip: ClipSource | None, catalogue: Catalogue
    ) -> Built:
        settings = self._settings
        # Both before anything is written: what is there is known, and its number is never used again.
        journal.save(settings.release_dir)
        reserve_version(settings.model_repository, journal.version)
        kept = await ready_releases(self._database)
        models = await publish_models(self._source, clip, journal.version, kept, settings)
        examination.check_copies(models)
        return await build(
            self._source, models, catalogue, journal, self._towers, self._database, self._milvus, settings
        )

    async def _serve(self, release: Manifest) -> None:
        await self._registry.register(release)
        if not self._wishes.activate:
            Journal.remove(self._settings.release_dir)
            logger.info("release %s is ready", release.release_id)
            return
        reason = f"published from {release.source}"
        if release.forced_reason:
            reason += f", forced: {release.forced_reason}"
        try:
            plan = await self._registry.activate(
                release.release_id, reason[:512], after_seq=self._wishes.after_seq
            )
        except FailedPreconditionError as error:
            if self._wishes.after_seq is None:
                raise
            raise HeldUpError(f"release {release.release_id} is ready, and not active: {error}") from error
        Journal.remove(self._settings.release_dir)
        logger.info("release %s is active", release.release_id)
        await self._point_alias()
        await bring_out(plan, self._database, self._settings)

    async def _point_alias(self) -> None:
        if self._milvus is None:
            return
        try:
            await point_alias(self._registry, self._milvus)
        except KeekError as error:
            logger.warning("the alias in Milvus is left to the servers: %s", error)

    async def _tidy(self, version: int) -> None:
        """Removes what nobody goes back to, and what crashes left; the new release is safe in any case."""
        settings = self._settings
        try:
            living = await Fleet(self._database, stale_s=settings.server_stale_s).living()
            held = {release_id for server in living for release_id in server.held_release_ids}
            # First nobody can ask for them any more, then they go.
            kept = [
                each.by_name for each in await kept_releases(self._database, settings.releases_kept, held)
            ]
            folders = await outdated_folders(self._database, settings.release_dir)
            await asyncio.to_thread(remove_folders, folders)
            await asyncio.to_thread(prune_versions, settings.model_repository, kept, version)
            await load_models(settings, _placed(settings.model_repository))
            if self._milvus is not None:
                await drop_outdated(self._registry, self._milvus)
        except (KeekError, OSError) as error:
            logger.warning("what is old stays until the next release: %s", error)


def _placed(repository: Path) -> list[str]:
    """The models that a repository has a place for: an older one lacks that of what came later."""
    return [each.model for each in MODELS if (repository / each.model).is_dir()]
