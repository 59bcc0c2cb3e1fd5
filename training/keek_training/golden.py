"""Golden inputs: random ones and the edges, on which Keras and ONNX must agree."""

import numpy as np

from keek_server.interactions.kinds import InteractionKind
from keek_server.towers.contract import CLIP_DIMENSION, DIMENSION
from keek_server.towers.features import Tensors, user_features, video_features
from keek_server.towers.ranking import Candidates, RankedPage, ranker_batch, ranking_features

_RANDOM = 64
_LONGEST_AGE_S = 60 * 86400.0
_MOST_CANDIDATES = 60


def golden_users(history_length: int, seed: int = 7) -> Tensors:
    """Histories of all lengths: none, one, the longest, and random ones; known and unknown ids."""
    rng = np.random.default_rng(seed)
    lengths = [0, 1, history_length, *rng.integers(1, history_length + 1, _RANDOM).tolist()]
    vectors = [rng.normal(size=(length, DIMENSION)).astype(np.float32) for length in lengths]
    for rows in vectors:
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)
    kinds = [rng.integers(1, max(InteractionKind) + 1, length).astype(np.int32) for length in lengths]
    ages = [np.sort(rng.uniform(0, _LONGEST_AGE_S, length))[::-1].astype(np.float32) for length in lengths]
    return user_features([f"u{i}" if i % 5 else "" for i in range(len(lengths))], vectors, kinds, ages)


def golden_videos(seed: int = 8) -> Tensors:
    """With and without owner, tags, duration and clip vector; known and unknown ids."""
    rng = np.random.default_rng(seed)
    clips = rng.normal(size=(_RANDOM, CLIP_DIMENSION)).astype(np.float16)
    clips /= np.maximum(np.linalg.norm(clips.astype(np.float32), axis=1, keepdims=True), 1e-6).astype(
        np.float16
    )
    clips[::3] = 0
    return video_features(
        [f"v{i}" if i % 5 else "" for i in range(_RANDOM)],
        [f"o{i}" if i % 4 else "" for i in range(_RANDOM)],
        [[f"t{j}" for j in range(i % 7)] for i in range(_RANDOM)],
        np.where(np.arange(_RANDOM) % 6, rng.uniform(0, 300, _RANDOM), 0).astype(np.float32),
        clips,
    )


def golden_pages(seed: int = 9) -> Tensors:
    """One candidate, many, and numbers between; with and without a history, an owner, popularity."""
    rng = np.random.default_rng(seed)
    pages = []
    for count in (1, _MOST_CANDIDATES, *rng.integers(2, _MOST_CANDIDATES, _RANDOM // 2).tolist()):
        user_vector = rng.normal(size=DIMENSION).astype(np.float32)
        vectors = rng.normal(size=(count, DIMENSION)).astype(np.float32)
        history = rng.normal(size=(count % 8, DIMENSION)).astype(np.float32)
        owners = rng.integers(0, 4, count).astype(np.uint64)
        candidates = Candidates(
            vectors,
            owners,
            rng.uniform(0, 300, count).astype(np.float32),
            rng.integers(0, int(_LONGEST_AGE_S * 1e6), count),
            (rng.uniform(0, 0.01, count) * (np.arange(count) % 2)).astype(np.float32),
        )
        features = ranking_features(
            user_vector, candidates, history, owners[: len(history)], int(_LONGEST_AGE_S * 1e6)
        )
        pages.append(RankedPage(user_vector, vectors, features))
    return ranker_batch(pages)
