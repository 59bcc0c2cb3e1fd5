"""TikTok's file: likes in a drawn order, and what is seen and heard in the place of a clip vector."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.tiktok import FILE, read_pairs

_USERS = 40
_VIDEOS = 12


def _write(folder: Path, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    pairs = np.array([(user, video) for user in range(_USERS) for video in range(5)], np.int32).T
    arrays = {
        "trn": pairs,
        "val": np.array([[0, 1], [7, 11]], np.int32),
        "visual": rng.random((_VIDEOS, 128)).astype(np.float16),
        "acoustic": rng.random((_VIDEOS, 128)).astype(np.float16),
    }
    kept = {name: value for name, value in (arrays | changes).items() if value is not None}
    np.savez(folder / FILE, **kept)
    return folder


def test_every_pair_of_trn_is_a_like_at_one_moment_and_every_vector_a_video(tmp_path: Path) -> None:
    dataset = open_dataset(f"tiktok:{_write(tmp_path)}")
    assert dataset.videos.num_rows == _VIDEOS
    rows = dataset.interactions.to_pylist()
    assert {(row["user_id"], row["video_id"]) for row in rows} == {
        (str(user), str(video)) for user in range(_USERS) for video in range(5)
    }
    assert {(row["kind"], row["event_time_us"]) for row in rows} == {(InteractionKind.LIKE, 0)}


def test_a_users_order_is_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    spec = f"tiktok:{_write(tmp_path)}"
    rows = open_dataset(spec).interactions.to_pylist()
    assert rows == open_dataset(spec).interactions.to_pylist()
    lasts = {row["user_id"]: row["video_id"] for row in rows}
    assert len(set(lasts.values())) == 5


def test_what_is_seen_and_heard_stands_at_the_row_of_its_video(tmp_path: Path) -> None:
    visual = np.ones((_VIDEOS, 128), np.float16)
    visual[10, 0] = 50
    dataset = open_dataset(f"tiktok:{_write(tmp_path, visual=visual)}")
    assert dataset.clip_vectors is not None
    vectors = dataset.clip_vectors.astype(np.float32)
    row = dataset.videos["video_id"].to_pylist().index("10")
    assert vectors[:, 0].argmax() == row
    assert np.linalg.norm(vectors[:, :128], axis=1) == pytest.approx(1, abs=1e-2)
    assert np.linalg.norm(vectors[:, 128:256], axis=1) == pytest.approx(0.5, abs=1e-2)
    assert not vectors[:, 256:].any()


def test_val_is_read_apart(tmp_path: Path) -> None:
    assert read_pairs(_write(tmp_path), "val").tolist() == [[0, 1], [7, 11]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trn": None}, "lacks the array trn"),
        ({"trn": np.array([[0], [_VIDEOS]])}, "names the video 12"),
        ({"trn": np.array([[0.5], [1.0]])}, "trn is float64"),
        ({"trn": np.array([[0], [-1]])}, "not a row of users and one of videos"),
        ({"acoustic": np.ones((3, 128), np.float16)}, "no vectors of one set of videos"),
    ],
)
def test_a_file_of_another_layout_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        open_dataset(f"tiktok:{_write(tmp_path, **changes)}")


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(SetupError, match=r"is not a readable \.npz file"):
        open_dataset(f"tiktok:{tmp_path}")
