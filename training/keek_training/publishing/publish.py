"""Publishing: one path from two towers to the active release.

Gates come before anything reaches Triton, and again before anything is registered. Everything is
written aside and renamed, and activation comes last: a crash at any point leaves the old release
serving, and the next publisher removes what it left. Then what no release needs any more is removed.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from keek_server.clock import now_us
from keek_server.errors import KeekError, SetupError
from keek_server.files import sha256_of
from keek_server.interactions.log import InteractionLog
from keek_server.releases.fleet import Fleet
from keek_server.releases.manifest import Manifest
from keek_server.releases.plan import ReleaseState
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import Corpus, clip_is_read
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.towers.client import TowerClient, open_towers
from keek_server.towers.contract import DIMENSION
from keek_training.gates.measured import Measured
from keek_training.gates.verdict import RefusedError
from keek_training.publishing.announcing import bring_out
from keek_training.publishing.catalogue import Catalogue, read_catalogue
from keek_training.publishing.clip import ClipSource, choose_clip
from keek_training.publishing.embedding import embed
from keek_training.publishing.examination import Examination
from keek_training.publishing.folders import (
    outdated_folders,
    remove_folders,
    remove_unregistered,
    unregistered_folder,
    written_folder,
)
from keek_training.publishing.indexes import Indexes, build_corpus, build_indexes
from keek_training.publishing.kept import ReleaseModels, active_release, kept_releases, ready_releases
from keek_training.publishing.lock import publishing_alone
from keek_training.publishing.models import publish_models
from keek_training.publishing.repository import (
    check_versions,
    load_models,
    next_version,
    prune_versions,
    withdraw_version,
)
from keek_training.publishing.source import TowerSource
from keek_training.publishing.users import embed_users

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wishes:
    """How something is to be published."""

    clip: str | None = None
    """Name of the exported CLIP that the release gets; see `choose_clip`."""
    forced_reason: str = ""
    """Why it is published although a gate refuses it; empty when it must not."""
    activate: bool = True
    """Whether it serves everyone at once; otherwise it is ready to be tried."""


async def publish(source: TowerSource, settings: Settings, wishes: Wishes = Wishes()) -> Manifest:
    """Publishes two towers, and activates them.

    Raises:
        RefusedError: When a gate refuses the release; it is registered as refused, or was never loaded.
        SetupError: When somebody else publishes, the CLIP is not exported, the catalogue is empty, or
            Triton refuses a model.
        UnavailableError: When Triton or the database fails on the way.
    """
    with publishing_alone(settings, source.name):
        async with open_database(settings) as database, open_towers(settings) as towers:
            return await _Publisher(source, wishes, towers, database, settings).run()


@dataclass(frozen=True, slots=True)
class _Built:
    """A release before its files are written."""

    catalogue: Catalogue
    corpus: Corpus
    indexes: Indexes
    log_seq: int


class _Publisher:
    def __init__(
        self,
        source: TowerSource,
        wishes: Wishes,
        towers: TowerClient,
        database: Database,
        settings: Settings,
    ) -> None:
        self._source = source
        self._wishes = wishes
        self._towers = towers
        self._database = database
        self._settings = settings
        self._registry = ReleaseRegistry(database)

    async def run(self) -> Manifest:
        settings, wishes = self._settings, self._wishes
        await remove_unregistered(self._registry, settings.release_dir)
        live = await active_release(self._database)
        clip = choose_clip(wishes.clip, live, settings)
        own = clip.record.clip_model if clip else ""
        catalogue = await read_catalogue(self._database, lambda clip_model: clip_is_read(clip_model, own))
        if not catalogue.video_ids:
            raise SetupError("the catalogue is empty: import videos first")
        version = next_version(settings.model_repository, await self._registry.last_version())
        release_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{version}"
        examination = Examination(self._source, release_id, live, settings, wishes.forced_reason)
        await examination.before_loading()
        release = await self._build(examination, clip, catalogue, version)
        await self._serve(release)
        await self._tidy(version)
        return release

    async def _build(
        self, examination: Examination, clip: ClipSource | None, catalogue: Catalogue, version: int
    ) -> Manifest:
        settings = self._settings
        models = await publish_models(
            self._source, clip, version, await ready_releases(self._database), settings
        )
        try:
            examination.check_copies(models)
            built = await self._embed(catalogue, version)
            await examination.before_serving(self._measured(built, version), self._database, self._towers)
        except RefusedError:
            await withdraw_version(settings, version, models.by_name)
            refused = self._manifest(examination, models, built, {})
            await self._registry.register(refused, ReleaseState.REFUSED)
            raise
        except KeekError:
            # What cannot be withdrawn now is removed by the next publisher.
            with suppress(KeekError):
                await withdraw_version(settings, version, models.by_name)
            raise
        return await self._write(examination, models, built, clip)

    async def _embed(self, catalogue: Catalogue, version: int) -> _Built:
        corpus = build_corpus(catalogue, await embed(self._towers, version, catalogue))
        # Before the users are read: a row that comes meanwhile is newer than this, and its user comes again.
        log_seq = (await InteractionLog(self._database).extent()).last_seq
        user_ids, users = await embed_users(
            self._database,
            self._towers,
            version,
            corpus,
            history_length=self._source.history_length,
            limit=self._settings.audience_limit,
        )
        indexes = await asyncio.to_thread(build_indexes, catalogue, corpus, user_ids, users, self._settings)
        return _Built(catalogue, corpus, indexes, log_seq)

    def _measured(self, built: _Built, version: int) -> Measured:
        indexes = built.indexes
        return Measured(
            version,
            version,
            self._source.history_length,
            built.corpus,
            indexes.videos,
            indexes.videos_report,
            self._source,
        )

    async def _write(
        self, examination: Examination, models: ReleaseModels, built: _Built, clip: ClipSource | None
    ) -> Manifest:
        settings = self._settings
        with (
            unregistered_folder(settings.release_dir, examination.release_id),
            written_folder(settings.release_dir, examination.release_id) as folder,
        ):
            built.corpus.save(folder)
            built.indexes.save(folder)
            if clip is not None:
                clip.copy_files(folder)
            checksums = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
            manifest = self._manifest(examination, models, built, checksums)
            manifest.save(folder)
            check_versions(settings.model_repository, models.by_name)
        return manifest

    def _manifest(
        self, examination: Examination, models: ReleaseModels, built: _Built, checksums: dict[str, str]
    ) -> Manifest:
        indexes = built.indexes
        return Manifest(
            release_id=examination.release_id,
            create_time_us=now_us(),
            user_tower=models.user_tower,
            video_tower=models.video_tower,
            clip=models.clip,
            dimension=DIMENSION,
            history_length=self._source.history_length,
            catalogue_seq=built.catalogue.seq,
            log_seq=built.log_seq,
            index=indexes.videos_report,
            clip_index=indexes.clip[1] if indexes.clip else None,
            user_index=indexes.users[1],
            files_sha256=checksums,
            metrics=self._source.metrics,
            source=self._source.name,
            gates=tuple(examination.results),
            forced_reason=self._wishes.forced_reason if _failed(examination) else "",
        )

    async def _serve(self, release: Manifest) -> None:
        await self._registry.register(release)
        if not self._wishes.activate:
            logger.info("release %s is ready", release.release_id)
            return
        reason = f"published from {release.source}"
        if release.forced_reason:
            reason += f", forced: {release.forced_reason}"
        plan = await self._registry.activate(release.release_id, reason[:512])
        logger.info("release %s is active", release.release_id)
        await bring_out(plan, self._database, self._settings)

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
            await load_models(settings, {model for models in kept for model in models})
        except KeekError as error:
            logger.warning("what is old stays until the next release: %s", error)


def _failed(examination: Examination) -> bool:
    return any(not result.passed for result in examination.results)
