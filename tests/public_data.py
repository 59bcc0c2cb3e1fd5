"""Small folders with the files of the public data sets."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from keek_training.datasets.tiktok import FILE

LOG_END_MS = 1_650_800_000_000
"""Within 24 April 2022: the last impression of the sequences."""


def write_kuairand(folder: Path, *, users: int = 20, shown: int = 12, videos: int = 30) -> Path:
    """Sequences of `shown` impressions, all but the first watched long; two later impressions a user, the
    first of them positive."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    rows = [rng.permutation(videos)[: shown + 2] for _ in range(users)]
    lists = pa.list_(pa.int64())
    table = pa.table(
        {
            "user_id": pa.array(range(users), pa.int64()),
            "history_len": pa.array([shown] * users, pa.int64()),
            "last_time_ms": pa.array([LOG_END_MS - user for user in range(users)], pa.int64()),
            "watch_seq": pa.array([row[:shown] for row in rows], lists),
            "like_seq": pa.array([row[1:2] for row in rows], lists),
            "long_watch_seq": pa.array([row[1:shown] for row in rows], lists),
        }
    )
    pq.write_table(table, folder / "train_user_sequences.parquet")
    flags = [1, 0] * users
    later = {
        "user_id": np.repeat(np.arange(users), 2),
        "video_id": np.concatenate([row[shown:] for row in rows]),
        "time_ms": LOG_END_MS + 86_400_000 + np.arange(2 * users),
        "is_like": flags,
        "is_forward": [0, 0] * users,
        "is_hate": [0, 0] * users,
        "long_view": flags,
        "is_positive": flags,
    }
    pq.write_table(pa.table(later), folder / "val_20220425_0430.parquet")
    return folder


def write_movielens(folder: Path, *, users: int = 20, rated: int = 8, movies: int = 25) -> Path:
    """ML-1M as it was published; no user rates two movies in one second."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    lines = [
        f"{user}::{movie}::{rng.integers(1, 6)}::{978_300_000 + 100 * user + place}"
        for user in range(1, users + 1)
        for place, movie in enumerate(1 + rng.permutation(movies)[:rated])
    ]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    names = [f"{movie}::Movie {movie}::Drama" for movie in range(1, movies + 1)]
    (folder / "movies.dat").write_text("\n".join(names) + "\n")
    return folder


def write_tiktok(folder: Path, *, users: int = 30, videos: int = 20) -> Path:
    """Four videos a user in `trn`, and one in `val`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    pairs = np.array([(user, video) for user in range(users) for video in rng.permutation(videos)[:5]])
    held = np.arange(len(pairs)) % 5 == 4
    vectors = {name: rng.random((videos, 128)).astype(np.float16) for name in ("visual", "acoustic")}
    np.savez(folder / FILE, trn=pairs[~held].T, val=pairs[held].T, **vectors)
    return folder
