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
from keek_server.releases.release import INDEX_FILE, Corpus
from keek_server.retrieval.build import build_index
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.towers.client import TowerClient, open_towers
from keek_server.towers.contract import DIMENSION, USER_TOWER, VIDEO_TOWER
from keek_training.publishing.corpus import Catalogue, embed, read_catalogue
from keek_training.publishing.queries import sample_user_vectors
from keek_training.publishing.repository import (
    load_version,
    next_version,
    prune_versions,
    publish_folder,
    write_version,
)
from keek_training.runs import Run

logger = logging.getLogger(__name__)


async def publish(run: Run, settings: Settings) -> Manifest:
    """Publishes an exported run and activates it.

    Raises:
        SetupError: When the run is not exported, the catalogue is empty, or Triton refuses a model.
        UnavailableError: When Triton or the database fails on the way.
    """
    async with open_database(settings) as database, open_towers(settings) as towers:
        catalogue = await read_catalogue(database)
        if not catalogue.video_ids:
            raise SetupError("the catalogue is empty: import videos first")
        release = await _build(run, catalogue, towers, database, settings)
        registry = ReleaseRegistry(database)
        await registry.register(release)
        await registry.activate(release.release_id, f"published from run {run.name}")
    logger.info("release %s is active", release.release_id)
    return release


async def _build(
    run: Run, catalogue: Catalogue, towers: TowerClient, database: Database, settings: Settings
) -> Manifest:
    export = run.read_export()
    history_length = int(export["history_length"])
    version = next_version(settings.model_repository)
    user_tower = write_version(settings.model_repository, USER_TOWER, version, run.user_tower)
    video_tower = write_version(settings.model_repository, VIDEO_TOWER, version, run.video_tower)
    prune_versions(settings.model_repository)
    await load_version(settings, version)

    vectors = await embed(towers, version, catalogue)
    corpus = Corpus.build(catalogue.video_ids, catalogue.owner_ids, vectors, catalogue.counts)
    queries = await sample_user_vectors(database, towers, version, corpus, history_length)
    index, report = await asyncio.to_thread(
        build_index,
        vectors,
        queries,
        exact_below=settings.index_exact_below,
        recall_target=settings.index_recall_target,
    )

    release_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{version}"
    with _aside(settings.release_dir, release_id) as folder:
        corpus.save(folder)
        index.save(folder / INDEX_FILE)
        manifest = Manifest(
            release_id=release_id,
            create_time_us=now_us(),
            user_tower=user_tower,
            video_tower=video_tower,
            dimension=DIMENSION,
            history_length=history_length,
            index=report,
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
