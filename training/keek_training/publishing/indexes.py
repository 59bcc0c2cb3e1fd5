"""The indexes of a release: videos by the video tower and by CLIP, and users."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from keek_server.errors import SetupError
from keek_server.releases.columns import video_columns
from keek_server.releases.release import CLIP_INDEX_FILE, INDEX_FILE, Audience, Corpus
from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.clip_index import build_clip_index
from keek_server.retrieval.ids import IdTable
from keek_server.retrieval.index import FaissIndex, Index, IndexReport, Vectors
from keek_server.retrieval.milvus_store import Milvus
from keek_server.retrieval.tuning import QUERIES
from keek_server.settings import Settings
from keek_training.publishing.catalogue import Catalogue
from keek_training.publishing.milvus import build_collection


@dataclass(frozen=True, slots=True)
class Indexes:
    """All indexes of a release, with how each was built."""

    videos: Index
    videos_report: IndexReport
    clip: tuple[FaissIndex, IndexReport] | None
    """None when no video has a clip vector."""
    users: tuple[Audience, IndexReport]

    def save(self, folder: Path) -> None:
        """Writes their files into a release's folder; what is in Milvus has none."""
        if isinstance(self.videos, FaissIndex):
            self.videos.save(folder / INDEX_FILE)
        if self.clip is not None:
            self.clip[0].save(folder / CLIP_INDEX_FILE)
        self.users[0].save(folder)


def build_corpus(catalogue: Catalogue, vectors: Vectors) -> Corpus:
    """The corpus of a catalogue of n videos, with their vectors, float32 [n, DIMENSION]."""
    columns = video_columns(
        vectors,
        owner_ids=catalogue.owner_ids,
        tags=catalogue.tags,
        durations_s=catalogue.durations_s,
        create_times_us=catalogue.create_times_us,
        languages=catalogue.languages,
        regions=catalogue.regions,
    )
    return Corpus.build(catalogue.video_ids, columns, catalogue.counts)


def build_indexes(
    release_id: str,
    catalogue: Catalogue,
    corpus: Corpus,
    user_ids: list[str],
    users: Vectors,
    milvus: Milvus | None,
    settings: Settings,
) -> Indexes:
    """Builds them, with all cores.

    Args:
        release_id: Whose they are.
        catalogue: n videos.
        corpus: Of the same videos.
        user_ids: m users, the latest first.
        users: float32 [m, DIMENSION].
        milvus: Gets the videos if settings say so.
        settings: How indexes are built.

    Raises:
        SetupError: When there is no user to measure the recall with.
        UnavailableError: When Milvus fails on the way.
    """
    if not user_ids:
        raise SetupError("no interactions with videos of the catalogue: import interactions first")
    options = IndexOptions.of(settings)
    index: Index
    if settings.index_kind == "milvus" and milvus is not None:
        index, report = build_collection(milvus, release_id, corpus.vectors, users, options)
    else:
        index, report = build_index(corpus.vectors, users, options)
    clip = None
    if catalogue.has_clip.any():
        clip = build_clip_index(
            catalogue.clip_vectors,
            catalogue.has_clip,
            exact_below=settings.index_exact_below,
            recall_target=settings.index_recall_target,
        )
    # Videos ask for users: a sample of their vectors is what recall is measured with.
    sample = np.random.default_rng(0).integers(0, len(corpus.vectors), QUERIES)
    # Vectors of users are kept in their index alone: they cannot be scored again by others.
    options = replace(options, kind="exact" if len(users) < settings.index_exact_below else "ivf_flat")
    user_index, user_report = build_index(users, np.asarray(corpus.vectors[sample]), options)
    return Indexes(index, report, clip, (Audience(IdTable.build(user_ids), user_index), user_report))
