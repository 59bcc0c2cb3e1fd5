"""From two towers in Triton to the files of a release."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from keek_server.clock import now_us
from keek_server.files import sha256_of
from keek_server.interactions.log import InteractionLog
from keek_server.releases.manifest import Manifest
from keek_server.releases.release import Corpus
from keek_server.retrieval.milvus_store import Milvus
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import DIMENSION
from keek_training.gates.measured import Measured
from keek_training.gates.verdict import failures
from keek_training.publishing.catalogue import Catalogue
from keek_training.publishing.checkpoint import Checkpoint
from keek_training.publishing.clip import ClipSource
from keek_training.publishing.embedding import embed
from keek_training.publishing.examination import Examination
from keek_training.publishing.folders import written_folder
from keek_training.publishing.indexes import Indexes, build_corpus, build_indexes
from keek_training.publishing.journal import CHECKPOINT_FILE, Journal
from keek_training.publishing.kept import ReleaseModels
from keek_training.publishing.repository import check_versions
from keek_training.publishing.source import TowerSource
from keek_training.publishing.users import embed_users


@dataclass(frozen=True, slots=True)
class Built:
    """A release before its files are written."""

    source: TowerSource
    models: ReleaseModels
    catalogue: Catalogue
    corpus: Corpus
    indexes: Indexes
    log_seq: int

    @property
    def measured(self) -> Measured:
        """As the gates see it."""
        return Measured(
            self.models.user_tower.version,
            self.models.video_tower.version,
            self.source.history_length,
            self.corpus,
            self.indexes.videos,
            self.indexes.videos_report,
            self.source,
            self.models.ranker.version if self.models.ranker else 0,
        )

    def manifest(self, examination: Examination, checksums: dict[str, str]) -> Manifest:
        """Its manifest.

        Args:
            examination: What the gates have measured.
            checksums: SHA-256 of its files, by name.
        """
        return Manifest(
            release_id=examination.release_id,
            create_time_us=now_us(),
            user_tower=self.models.user_tower,
            video_tower=self.models.video_tower,
            clip=self.models.clip,
            ranker=self.models.ranker,
            dimension=DIMENSION,
            history_length=self.source.history_length,
            catalogue_seq=self.catalogue.seq,
            log_seq=self.log_seq,
            index=self.indexes.videos_report,
            clip_index=self.indexes.clip[1] if self.indexes.clip else None,
            user_index=self.indexes.users[1],
            files_sha256=checksums,
            metrics=self.source.metrics,
            source=self.source.name,
            gates=tuple(examination.results),
            forced_reason=examination.forced_reason if failures(examination.results) else "",
        )


async def build(
    source: TowerSource,
    models: ReleaseModels,
    catalogue: Catalogue,
    journal: Journal,
    towers: TowerClient,
    database: Database,
    milvus: Milvus | None,
    settings: Settings,
) -> Built:
    """Embeds the corpus and the users, and builds the indexes.

    Vectors that an interrupted publisher of the same towers got are used again.

    Raises:
        SetupError: When vectors are not finite, or there are no users.
        UnavailableError: When Triton, the database or Milvus fails on the way.
    """
    version = models.video_tower.version
    checkpoint = await Checkpoint.open(
        settings.release_dir / CHECKPOINT_FILE, journal.fingerprint, catalogue.seq, database
    )
    corpus = build_corpus(catalogue, await embed(towers, version, catalogue, checkpoint))
    # Before the users are read: a row that comes meanwhile is newer than this, and its user comes again.
    log_seq = (await InteractionLog(database).extent()).last_seq
    user_ids, users = await embed_users(
        database,
        towers,
        models.user_tower.version,
        corpus,
        history_length=source.history_length,
        limit=settings.audience_limit,
    )
    indexes = await asyncio.to_thread(
        build_indexes, journal.release_id, catalogue, corpus, user_ids, users, milvus, settings
    )
    return Built(source, models, catalogue, corpus, indexes, log_seq)


def write_release(
    built: Built, clip: ClipSource | None, examination: Examination, release_dir: Path, repository: Path
) -> Manifest:
    """Writes all files of a release; its folder has its name when they are complete.

    Raises:
        SetupError: When a model has gone from the repository meanwhile.
    """
    with written_folder(release_dir, examination.release_id) as folder:
        built.corpus.save(folder)
        built.indexes.save(folder)
        if clip is not None:
            clip.copy_files(folder)
        checksums = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
        manifest = built.manifest(examination, checksums)
        manifest.save(folder)
        check_versions(repository, built.models.by_name)
    return manifest
