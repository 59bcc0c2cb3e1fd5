"""Rankings as they are served: the exported towers, the index of a release, the server's search."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow.compute as pc
from tqdm import tqdm

from keek_server.errors import SetupError
from keek_server.feed.history import served_inputs
from keek_server.interactions.history import HistoryEntry
from keek_server.interactions.kinds import KINDS, InteractionKind
from keek_server.releases.release import VIDEO_COLUMNS, Corpus
from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.fresh import VECTORS
from keek_server.retrieval.index import FaissIndex
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.query import Excluded, Query
from keek_server.settings import Settings
from keek_server.towers.contract import CLIP_DIMENSION, DIMENSION, USER_TOWER, VIDEO_TOWER, TowerContract
from keek_server.towers.features import Float32Array, Tensors, video_features
from keek_server.towers.users import UserInputs, user_batch
from keek_training.datasets.dataset import Dataset
from keek_training.evaluation.cases import Cases
from keek_training.evaluation.ranking import DEPTH, Ranked, rank_by_vectors
from keek_training.publishing.catalogue import Catalogue
from keek_training.publishing.indexes import build_corpus
from keek_training.publishing.source import TowerSource
from keek_training.sessions import open_session

_SEARCHED: Final = 64
"""Queries a call, as many as wait together at a busy server."""
_BATCH: Final = 256

Tower = Callable[[Tensors], Float32Array]
"""From a tower's input tensors, [n, ...] each, to float32 [n, DIMENSION]."""


@dataclass(frozen=True, slots=True)
class ServedRankings:
    """The same cases, ranked in two ways."""

    served: Ranked
    """Through the index, as a server searches it."""
    exact: Ranked
    """By the same vectors, all of them scored."""
    index: FaissIndex
    again: Callable[[Cases], Ranked]
    """Ranks other requests through the same towers and index."""


def onnx_tower(source: TowerSource, contract: TowerContract) -> Tower:
    """An exported tower in ONNX Runtime, on one core.

    Raises:
        SetupError: When ONNX Runtime refuses the file.
    """
    path = source.path(contract)
    try:
        session = open_session(path, 1)
    except Exception as error:
        raise SetupError(f"ONNX Runtime refuses {path}: {error}") from error

    def answer(inputs: Tensors) -> Float32Array:
        (found,) = session.run([contract.output.name], inputs)
        return np.asarray(found, np.float32)

    return answer


def corpus_of(training: Dataset, video_tower: Tower) -> Corpus:
    """The corpus that publishing would make of a data set, in its order of videos.

    Raises:
        SetupError: When vectors are not finite.
    """
    catalogue = _catalogue(training)
    parts = []
    for start in tqdm(range(0, len(catalogue), _BATCH), "embedding the corpus", leave=False, disable=None):
        own = slice(start, start + _BATCH)
        features = video_features(
            catalogue.video_ids[own],
            catalogue.owner_ids[own],
            catalogue.tags[own],
            catalogue.durations_s[own],
            catalogue.clip_vectors[own],
        )
        parts.append(video_tower(features))
    vectors = np.concatenate([np.empty((0, DIMENSION), np.float32), *parts])
    if not np.isfinite(vectors).all():
        raise SetupError("the video tower gives vectors that are not finite")
    return build_corpus(catalogue, vectors)


def user_vectors(cases: Cases, corpus: Corpus, user_tower: Tower, history_length: int) -> Float32Array:
    """The vector of each case's user at the request, from the inputs that serving makes.

    float32 [n, DIMENSION]; zero where nothing is known of the user: the server does not ask the tower then.
    """
    vectors = np.zeros((len(cases), DIMENSION), np.float32)
    inputs = _inputs(cases, corpus, history_length)
    with tqdm(total=len(cases), desc="embedding the users", leave=False, disable=None) as progress:
        while part := list(islice(inputs, _BATCH)):
            rows = [row for row, own in part if len(own.kinds)]
            if rows:
                vectors[rows] = user_tower(user_batch([own for _, own in part if len(own.kinds)]))
            progress.update(len(part))
    return vectors


def rank_served(cases: Cases, source: TowerSource, training: Dataset, settings: Settings) -> ServedRankings:
    """Ranks all videos through the exported towers and the index, and exactly by the same vectors.

    Whoever is new gets the release's popular list, as in serving.

    Args:
        cases: n requests.
        source: The exported towers.
        training: Its videos are the corpus, in the order of the cases' catalogue.
        settings: How the index is built.

    Raises:
        SetupError: When a tower cannot be loaded or gives what is not finite.
    """
    corpus = corpus_of(training, onnx_tower(source, VIDEO_TOWER))
    user_tower = onnx_tower(source, USER_TOWER)

    def vectors(own: Cases) -> Float32Array:
        found = user_vectors(own, corpus, user_tower, source.history_length)
        if not np.isfinite(found).all():
            raise SetupError("the user tower gives vectors that are not finite")
        return found

    def search(own: Cases, users: Float32Array) -> Ranked:
        return with_popular(_search(own, corpus, index, users), own, corpus)

    users = vectors(cases)
    index, _ = build_index(corpus.vectors, users, IndexOptions.of(settings))
    exact = with_popular(rank_by_vectors(cases, users, np.asarray(corpus.vectors)), cases, corpus)
    return ServedRankings(search(cases, users), exact, index, lambda own: search(own, vectors(own)))


def with_popular(ranked: Ranked, cases: Cases, corpus: Corpus) -> Ranked:
    """The popular list in the place of a ranking for users of whom nothing is known."""
    ranked = ranked.copy()
    listed = np.full(DEPTH, -1, np.int32)
    first = corpus.popular[:DEPTH]
    listed[: len(first)] = first
    ranked[cases.is_new_user] = listed
    return ranked


def _search(cases: Cases, corpus: Corpus, index: FaissIndex, users: Float32Array) -> Ranked:
    live = LiveIndex({VECTORS: index}, corpus.ids, corpus.columns, fresh_columns=VIDEO_COLUMNS, fresh_limit=1)
    ids = cases.video_ids.to_pylist()
    ranked = np.full((len(cases), DEPTH), -1, np.int32)
    starts = range(0, len(cases), _SEARCHED)
    for start in tqdm(starts, "searching", leave=False, disable=None):
        rows = range(start, min(start + _SEARCHED, len(cases)))
        queries = [Query(users[row], DEPTH, excluded=Excluded(_seen(cases, ids, row))) for row in rows]
        for row, hits in zip(rows, live.search(queries), strict=True):
            found = hits.rows[:DEPTH]
            ranked[row, : len(found)] = found
    return ranked


def _seen(cases: Cases, ids: list[str], row: int) -> frozenset[str]:
    seen = cases.seen
    return frozenset(ids[video] for video in seen.videos[seen.offsets[row] : seen.offsets[row + 1]].tolist())


def _inputs(cases: Cases, corpus: Corpus, history_length: int) -> Iterator[tuple[int, UserInputs]]:
    """By case, what the server would send of the user's history."""
    known, ids = cases.known, cases.video_ids.to_pylist()
    for row, (user_id, user) in enumerate(zip(cases.user_ids, cases.users.tolist(), strict=True)):
        start, stop = (known.offsets[user], known.offsets[user + 1]) if user >= 0 else (0, 0)
        own = slice(max(start, stop - history_length), stop)
        columns: tuple[Any, ...] = (known.videos[own], known.kinds[own], known.times_us[own])
        history = [
            HistoryEntry(ids[video], KINDS[kind], time_us)
            for video, kind, time_us in zip(*(column.tolist() for column in columns), strict=True)
        ]
        yield row, served_inputs(corpus, user_id, history, int(cases.now_us[row]))


def _catalogue(training: Dataset) -> Catalogue:
    videos, rows = training.videos, training.interactions
    count = videos.num_rows
    liked = rows.filter(pc.not_equal(rows["kind"], int(InteractionKind.SKIP)))
    places = pc.index_in(liked["video_id"], value_set=videos["video_id"].combine_chunks())
    clip = training.clip_vectors
    if clip is None:
        clip = np.zeros((count, CLIP_DIMENSION), np.float16)
    return Catalogue(
        seq=0,
        **{f"{name}s": videos[name].to_pylist() for name in ("video_id", "owner_id", "language", "region")},
        tags=videos["tags"].to_pylist(),
        durations_s=videos["duration_s"].to_pylist(),
        create_times_us=videos["create_time_us"].to_pylist(),
        clip_vectors=clip,
        has_clip=(clip != 0).max(axis=1),
        counts=np.bincount(pc.drop_null(places).to_numpy(), minlength=count).astype(np.int64),
    )
