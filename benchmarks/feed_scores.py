"""What every personalised score must be: from the files of the towers alone, without Triton or a server."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime

import keek
from benchmarks.rotated_towers import rotation
from benchmarks.tower_files import Towers
from keek_server.clock import now_us
from keek_server.feed.history import history_inputs
from keek_server.interactions.history import HistoryEntry
from keek_server.interactions.log import InteractionLog
from keek_server.retrieval.index import Mask, Vectors
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.towers.features import Tensors, video_features
from keek_server.towers.users import user_batch
from keek_training.publishing.catalogue import read_catalogue

TOLERANCE: Final = 0.02
"""Largest difference between a score and what it must be. Histories are years old, so that the tower cuts all
ages off where it stops counting; what is left is that float32 knows such ages to 8 s, and rounding."""

_PERSONALISED = keek.FeedSource.FEED_SOURCE_PERSONALISED
_AT_A_TIME = 1000
_TOP = 50
_BLIND_SEEDS = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the scores of one page show."""

    personalised: int
    """Items that were compared."""
    wrong: int
    largest_difference: float


class ExpectedScores:
    """The scores of n users and m videos, float32 [n, m], in any release whose towers are a rotation."""

    def __init__(
        self, user_ids: Sequence[str], video_ids: Sequence[str], users: Vectors, videos: Vectors
    ) -> None:
        """
        Args:
            user_ids: n users.
            video_ids: m videos.
            users: float32 [n, DIMENSION].
            videos: float32 [m, DIMENSION].
        """
        self.user_ids = list(user_ids)
        self._row = {user_id: row for row, user_id in enumerate(user_ids)}
        self._column = {video_id: column for column, video_id in enumerate(video_ids)}
        self._users, self._videos = users, videos
        self._scores = users @ videos.T

    @classmethod
    async def of(
        cls, towers: Towers, settings: Settings, *, users: int, history_length: int
    ) -> "ExpectedScores":
        """Of the first users of the synthetic data that have a history, and all videos of the catalogue."""
        async with open_database(settings) as database:
            catalogue = await read_catalogue(database)
            histories = await _histories(database, users, history_length)
        features = [
            video_features(
                catalogue.video_ids[part],
                catalogue.owner_ids[part],
                catalogue.tags[part],
                catalogue.durations_s[part],
                catalogue.clip_vectors[part],
            )
            for part in (slice(start, start + _AT_A_TIME) for start in range(0, len(catalogue), _AT_A_TIME))
        ]
        videos = await asyncio.to_thread(_answers, towers.videos().SerializeToString(), features)
        corpus = _Corpus(catalogue.video_ids, videos)
        now = now_us()
        inputs = [history_inputs(corpus, user_id, entries, now) for user_id, entries in histories.items()]
        content = towers.users().SerializeToString()
        return cls(
            list(histories),
            catalogue.video_ids,
            await asyncio.to_thread(_answers, content, [user_batch(inputs)]),
            videos,
        )

    def judge(self, user_id: str, items: Iterable[keek.FeedItem]) -> Verdict:
        """Compares the personalised items of a page; a video that is not known is wrong."""
        own = self._scores[self._row[user_id]]
        differences = [
            abs(item.score - own[self._column[item.video_id]]) if item.video_id in self._column else np.inf
            for item in items
            if item.source == _PERSONALISED
        ]
        # Written so that NaN is wrong.
        wrong = sum(not difference <= TOLERANCE for difference in differences)
        return Verdict(len(differences), wrong, float(max(differences, default=0.0)))

    def blind_share(self) -> float:
        """Share of the scores of mixed feeds that would pass for right: of those that a user tower of one
        rotation finds first among the videos of another."""
        passed = []
        for seed in range(_BLIND_SEEDS):
            mixed = self._users @ rotation(seed) @ self._videos.T
            first = np.argpartition(-mixed, _TOP, axis=1)[:, :_TOP]
            found, right = (np.take_along_axis(scores, first, axis=1) for scores in (mixed, self._scores))
            passed.append(np.mean(np.abs(found - right) <= TOLERANCE))
        return float(np.mean(passed))


class _Corpus:
    def __init__(self, video_ids: Sequence[str], vectors: Vectors) -> None:
        self._row = {video_id: row for row, video_id in enumerate(video_ids)}
        self._vectors = vectors

    def vectors_of(self, ids: Sequence[str]) -> tuple[Mask, Vectors]:
        """See `VideoVectors`."""
        rows: npt.NDArray[np.int64] = np.array([self._row.get(id_, -1) for id_ in ids], np.int64)
        known = rows >= 0
        return known, self._vectors[rows[known]]


async def _histories(database: Database, users: int, length: int) -> dict[str, list[HistoryEntry]]:
    log = InteractionLog(database)
    found: dict[str, list[HistoryEntry]] = {}
    number = 0
    missing = 0
    while len(found) < users and missing < users:
        number += 1
        rows = await log.history(f"u{number}", length)
        if rows:
            found[f"u{number}"] = [HistoryEntry(row.video_id, row.kind, row.event_time_us) for row in rows]
        missing += not rows
    return found


def _answers(model: bytes, batches: Sequence[Tensors]) -> Vectors:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return np.concatenate([np.asarray(session.run(None, batch)[0], np.float32) for batch in batches])
