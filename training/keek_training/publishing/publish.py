"""Publishing a run: one path from exported models to the active release.

Everything is written aside and renamed, and activation comes last: a crash at any point
leaves the old release serving. Then what no release needs any more is removed.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from keek_server.clock import now_us
from keek_server.errors import KeekError, SetupError
from keek_server.files import sha256_of
from keek_server.interactions.log import InteractionLog
from keek_server.releases.manifest import Manifest
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import clip_is_read
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.towers.client import TowerClient, open_towers
from keek_server.towers.contract import DIMENSION
from keek_training.publishing.catalogue import Catalogue, read_catalogue
from keek_training.publishing.clip import ClipSource, choose_clip
from keek_training.publishing.embedding import embed
from keek_training.publishing.folders import outdated_folders, remove_folders, written_folder
from keek_training.publishing.indexes import build_corpus, build_indexes
from keek_training.publishing.kept import KeptRelease, active_release, kept_releases
from keek_training.publishing.lock import publishing_alone
from keek_training.publishing.models import publish_models
from keek_training.publishing.repository import check_versions, next_version
from keek_training.publishing.users import embed_users
from keek_training.runs import Run

logger = logging.getLogger(__name__)


async def publish(run: Run, settings: Settings, *, clip: str | None = None) -> Manifest:
    """Publishes an exported run and activates it.

    Args:
        run: The run.
        settings: Where everything is.
        clip: Name of the exported CLIP that the release gets; see `choose_clip`.

    Raises:
        SetupError: When somebody else publishes, the run or the CLIP is not exported, the catalogue is
            empty, or Triton refuses a model.
        UnavailableError: When Triton or the database fails on the way.
    """
    with publishing_alone(settings, run.name):
        async with open_database(settings) as database, open_towers(settings) as towers:
            release = await _publish(run, clip, towers, database, settings)
    logger.info("release %s is active", release.release_id)
    return release


async def _publish(
    run: Run, clip: str | None, towers: TowerClient, database: Database, settings: Settings
) -> Manifest:
    chosen = choose_clip(clip, await active_release(database), settings)
    own = chosen.record.clip_model if chosen else ""
    catalogue = await read_catalogue(database, lambda clip_model: clip_is_read(clip_model, own))
    if not catalogue.video_ids:
        raise SetupError("the catalogue is empty: import videos first")
    kept = await kept_releases(database)
    release = await _build(run, chosen, catalogue, kept, towers, database, settings)
    registry = ReleaseRegistry(database)
    await registry.register(release)
    await registry.activate(release.release_id, f"published from run {run.name}")
    await _remove_outdated(release, kept, database, settings)
    return release


async def _build(
    run: Run,
    clip: ClipSource | None,
    catalogue: Catalogue,
    kept: Sequence[KeptRelease],
    towers: TowerClient,
    database: Database,
    settings: Settings,
) -> Manifest:
    export = run.read_export()
    history_length = int(export["history_length"])
    version = next_version(settings.model_repository)
    models = await publish_models(run, clip, version, kept, settings)

    vectors = await embed(towers, version, catalogue)
    corpus = build_corpus(catalogue, vectors)
    # Before the users are read: a row that comes meanwhile is newer than this, and its user comes again.
    log_seq = (await InteractionLog(database).extent()).last_seq
    user_ids, users = await embed_users(
        database, towers, version, corpus, history_length=history_length, limit=settings.audience_limit
    )
    indexes = await asyncio.to_thread(build_indexes, catalogue, corpus, user_ids, users, settings)

    release_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{version}"
    with written_folder(settings.release_dir, release_id) as folder:
        corpus.save(folder)
        indexes.save(folder)
        if clip is not None:
            clip.copy_files(folder)
        manifest = Manifest(
            release_id=release_id,
            create_time_us=now_us(),
            user_tower=models.user_tower,
            video_tower=models.video_tower,
            clip=models.clip,
            dimension=DIMENSION,
            history_length=history_length,
            catalogue_seq=catalogue.seq,
            log_seq=log_seq,
            index=indexes.videos_report,
            clip_index=indexes.clip[1] if indexes.clip else None,
            user_index=indexes.users[1],
            files_sha256={path.name: sha256_of(path) for path in sorted(folder.iterdir())},
            metrics={"training": run.read_metrics(), "export": export},
        )
        manifest.save(folder)
        check_versions(settings.model_repository, models.by_name)
    return manifest


async def _remove_outdated(
    release: Manifest, kept: Sequence[KeptRelease], database: Database, settings: Settings
) -> None:
    """Removes the folders of releases whose models are not kept either; the new one serves in any case."""
    try:
        # Read again: an operator may have gone back to another release meanwhile.
        now_kept = [*kept, *await kept_releases(database)]
        ids = {release.release_id, *(each.release_id for each in now_kept)}
        folders = await outdated_folders(database, settings.release_dir, ids)
    except KeekError as error:
        logger.warning("the folders of old releases stay for now: %s", error)
        return
    await asyncio.to_thread(remove_folders, folders)
