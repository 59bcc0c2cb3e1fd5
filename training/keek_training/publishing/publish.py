"""Publishing a run: one path from exported models to the active release.

Everything is written aside and renamed, and activation comes last: a crash at any point
leaves the old release serving.
"""

import asyncio
import hashlib
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from keek_server.clock import now_us
from keek_server.errors import SetupError
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
from keek_training.publishing.indexes import build_corpus, build_indexes
from keek_training.publishing.kept import active_release, kept_releases
from keek_training.publishing.models import publish_models
from keek_training.publishing.repository import next_version, publish_folder
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
        SetupError: When the run or the CLIP is not exported, the catalogue is empty, or Triton
            refuses a model.
        UnavailableError: When Triton or the database fails on the way.
    """
    async with open_database(settings) as database, open_towers(settings) as towers:
        chosen = choose_clip(clip, await active_release(database), settings)
        own = chosen.record.clip_model if chosen else ""
        catalogue = await read_catalogue(database, lambda clip_model: clip_is_read(clip_model, own))
        if not catalogue.video_ids:
            raise SetupError("the catalogue is empty: import videos first")
        release = await _build(run, chosen, catalogue, towers, database, settings)
        registry = ReleaseRegistry(database)
        await registry.register(release)
        await registry.activate(release.release_id, f"published from run {run.name}")
    logger.info("release %s is active", release.release_id)
    return release


async def _build(
    run: Run,
    clip: ClipSource | None,
    catalogue: Catalogue,
    towers: TowerClient,
    database: Database,
    settings: Settings,
) -> Manifest:
    export = run.read_export()
    history_length = int(export["history_length"])
    version = next_version(settings.model_repository)
    models = await publish_models(run, clip, version, await kept_releases(database), settings)

    vectors = await embed(towers, version, catalogue)
    corpus = build_corpus(catalogue, vectors)
    user_ids, users = await embed_users(
        database, towers, version, corpus, history_length=history_length, limit=settings.audience_limit
    )
    indexes = await asyncio.to_thread(build_indexes, catalogue, corpus, user_ids, users, settings)

    release_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{version}"
    with _aside(settings.release_dir, release_id) as folder:
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
            index=indexes.videos_report,
            clip_index=indexes.clip[1] if indexes.clip else None,
            user_index=indexes.users[1],
            files_sha256=_checksums(folder),
            metrics={"training": run.read_metrics(), "export": export},
        )
        manifest.save(folder)
    return manifest


@contextmanager
def _aside(release_dir: Path, release_id: str) -> Iterator[Path]:
    """A folder that gets its final name only when the block ends without an error."""
    release_dir.mkdir(parents=True, exist_ok=True)
    for left_over in release_dir.glob("*.tmp"):
        shutil.rmtree(left_over)
    folder = release_dir / f"{release_id}.tmp"
    folder.mkdir()
    yield folder
    publish_folder(folder, release_dir / release_id)


def _checksums(folder: Path) -> dict[str, str]:
    checksums = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            checksums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums
