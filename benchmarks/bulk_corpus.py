"""Exported towers, a catalogue and users for benchmarks of bulk ingest: of real sizes, not trained."""

from pathlib import Path

import numpy as np

from keek_server.retrieval.index import Vectors
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import CLIP_DIMENSION, USER_TOWER, VIDEO_TOWER
from keek_server.towers.features import Float16Array, hash_ids
from keek_server.towers.users import UserInputs, user_batch
from keek_training.config import TowerConfig, TrainConfig
from keek_training.export import export
from keek_training.golden import golden_users, golden_videos
from keek_training.publishing.catalogue import Catalogue
from keek_training.runs import Run
from keek_training.towers import VideoTower, user_tower_of
from keek_training.weights import save_weights

_BUCKETS = 1 << 16
"""What training gives each table of ids for a catalogue of a million."""
_OWNERS = 50_000
_TOPICS = 500
_TAGS = 3_000
_MOST_TAGS = 8
_TOPIC_SPREAD = 0.04
_CHUNK = 50_000
_QUERIES = 256
_HISTORY = 20
_DEADLINE_S = 60.0


def export_towers(directory: Path, videos: int) -> Run:
    """A run in `directory`, exported by training's own code; its tower knows all ids."""
    towers = TowerConfig(
        video_buckets=_BUCKETS,
        owner_buckets=_BUCKETS,
        tag_buckets=8 * _TAGS,
        user_buckets=_BUCKETS,
        longest_age_s=30 * 86400.0,
    )
    config = TrainConfig(towers=towers)
    run = Run(directory / "run")
    run.start()
    run.config.write_text(config.dumps(), "utf-8")
    video_tower, user_tower = VideoTower(towers, config.seed), user_tower_of(towers, config.seed)
    video_tower(golden_videos())
    user_tower(golden_users(towers.history_length))
    video_tower.ids.remember(hash_ids(_video_ids(videos)))
    video_tower.owners.remember(hash_ids(_owner_ids()))
    for weight in video_tower.weights:
        # Training begins with nothing read from the clip vector.
        if weight.path.endswith("clip/kernel"):
            weight.assign(np.random.default_rng(1).normal(0, 0.3, weight.shape))
    save_weights(video_tower, run.weights(VIDEO_TOWER.model))
    save_weights(user_tower, run.weights(USER_TOWER.model))
    run.write_metrics({}, [])
    export(run)
    return run


def make_catalogue(videos: int) -> Catalogue:
    """Videos of a topic each, which their tags and clip vectors follow."""
    rng = np.random.default_rng(2)
    topics = rng.integers(0, _TOPICS, videos)
    owners, tags = _owner_ids(), [f"tag{i}" for i in range(_TAGS)]
    counts = rng.integers(0, _MOST_TAGS + 1, videos)
    chosen = (3 * topics[:, None] + rng.integers(0, _MOST_TAGS, (videos, _MOST_TAGS))) % _TAGS
    return Catalogue(
        seq=0,
        video_ids=_video_ids(videos),
        owner_ids=[owners[i] for i in rng.integers(0, _OWNERS, videos)],
        tags=[[tags[i] for i in row[:n]] for row, n in zip(chosen.tolist(), counts.tolist(), strict=True)],
        durations_s=rng.lognormal(3, 1, videos).tolist(),
        create_times_us=[0] * videos,
        languages=[""] * videos,
        regions=[""] * videos,
        clip_vectors=_clip_vectors(topics, rng),
        has_clip=np.ones(videos, np.bool_),
        counts=np.ones(videos, np.int64),
    )


async def user_queries(towers: TowerClient, version: int, vectors: Vectors) -> Vectors:
    """Vectors of users whose histories are near one video each: float32 [256, DIMENSION]."""
    rng = np.random.default_rng(3)
    sample = vectors[rng.choice(len(vectors), min(len(vectors), _CHUNK), replace=False)]
    liked = np.argsort(-(sample[:_QUERIES] @ sample.T), axis=1)[:, :_HISTORY]
    users = [
        UserInputs(
            f"u{i}",
            sample[rows],
            rng.integers(1, 5, len(rows), np.int32),
            np.sort(rng.uniform(0, 86400, len(rows)))[::-1].astype(np.float32),
        )
        for i, rows in enumerate(liked)
    ]
    return await towers.vectors(USER_TOWER, version, user_batch(users), deadline_s=_DEADLINE_S)


def _video_ids(videos: int) -> list[str]:
    return [f"video-{i:08d}" for i in range(videos)]


def _owner_ids() -> list[str]:
    return [f"owner-{i}" for i in range(_OWNERS)]


def _clip_vectors(topics: np.ndarray, rng: np.random.Generator) -> Float16Array:
    """float16 [n, CLIP_DIMENSION], of length 1; those of a topic lie together."""
    centres = rng.normal(size=(_TOPICS, CLIP_DIMENSION)).astype(np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    out = np.empty((len(topics), CLIP_DIMENSION), np.float16)
    for start in range(0, len(topics), _CHUNK):
        rows = centres[topics[start : start + _CHUNK]]
        rows += _TOPIC_SPREAD * rng.standard_normal(rows.shape, np.float32)
        out[start : start + _CHUNK] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return out
