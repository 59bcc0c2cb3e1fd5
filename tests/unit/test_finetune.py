"""Fine-tuning: what it starts from, what it learns, and what it leaves as it was."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from keek_server.errors import SetupError
from keek_server.towers.features import hash_ids
from keek_training.config import TrainConfig
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.synth import parse_config, synthesise
from keek_training.features import IS_NEW, Sequences
from keek_training.runs import Run
from keek_training.windows import Windows

# TensorFlow and Keras warn about themselves while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

CONFIG = TrainConfig.of(
    {
        "towers": {"history_length": 8, "blocks": 1, "feed_forward": 16, "content_width": 16},
        "epochs": 2,
        "validation_users": 20,
        "average": 0.9,
        "fine_tuning": {"epochs": 2, "learning_rate": 2e-3},
    }
)


@pytest.fixture(scope="module")
def whole() -> Dataset:
    return synthesise(parse_config("users=60,videos=120,interactions=2400,seed=3,end=2026-01-01"))


@pytest.fixture(scope="module")
def early(whole: Dataset) -> Dataset:
    """What was there before the last third: neither its users nor its videos are all known yet."""
    rows = whole.interactions.slice(0, 1600)
    users = pc.unique(rows["user_id"]).to_pylist()[:50]
    rows = rows.filter(pc.is_in(rows["user_id"], value_set=pa.array(users)))
    videos = whole.videos.filter(pc.is_in(whole.videos["video_id"], value_set=rows["video_id"].unique()))
    return replace(whole, videos=videos, interactions=rows)


@pytest.fixture(scope="module")
def base(early: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    from keek_training.train_run import train_run

    run = Run(tmp_path_factory.mktemp("runs") / "base")
    train_run(early, CONFIG, run)
    return run


@pytest.fixture(scope="module")
def tuned(whole: Dataset, base: Run) -> Run:
    """The base, trained on with all that came since."""
    from keek_training.fine_tuning import fine_tuning_config
    from keek_training.train_run import train_run

    is_new = np.arange(whole.interactions.num_rows) >= 1600
    marked = whole.interactions.append_column(IS_NEW, pa.array(is_new))
    run = Run(base.folder.parent / "tuned")
    origin = {"log": {"log_id": "a", "after_seq": 0, "last_seq": 2400}}
    config = fine_tuning_config(base)
    train_run(replace(whole, interactions=marked), config, run, base=base, read=origin)
    return run


def towers(run: Run) -> tuple[Any, Any]:
    """Both towers of a run, built from its files alone."""
    from keek_training.golden import golden_users, golden_videos
    from keek_training.towers import VideoTower, user_tower_of
    from keek_training.weights import load_weights

    config = TrainConfig.load(run.config).towers
    user, video = user_tower_of(config, 1), VideoTower(config, 1)
    user(golden_users(config.history_length))
    video(golden_videos())
    for tower in (user, video):
        load_weights(tower, run.weights(tower.name))
    return user, video


def known(layer: Any, ids: list[str]) -> list[bool]:
    hashes = hash_ids(ids)
    rows = [np.asarray(weight) for weight in layer.known]
    return [bool(rows[0][h[0] % len(rows[0])] and rows[1][h[1] % len(rows[1])]) for h in hashes.tolist()]


def test_a_fine_tuned_run_has_its_bases_tables_and_other_weights(base: Run, tuned: Run) -> None:
    before, after = TrainConfig.load(base.config), TrainConfig.load(tuned.config)
    assert after.towers == before.towers
    assert (after.base, after.learning_rate, after.epochs) == ("base", 2e-3, 2)
    # Steps are few.
    assert after.average == 0.0
    assert tuned.is_trained
    with np.load(base.weights("user_tower")) as old, np.load(tuned.weights("user_tower")) as new:
        assert old.files == new.files
        changed = [name for name in old.files if not np.array_equal(old[name], new[name])]
    assert {"out/kernel", "ids/known_0"} <= set(changed)


def test_fine_tuning_knows_the_new_ids_and_still_the_old_ones(
    base: Run, tuned: Run, whole: Dataset, early: Dataset
) -> None:
    old_users = pc.unique(early.interactions["user_id"]).to_pylist()
    old_videos = pc.unique(early.interactions["video_id"]).to_pylist()
    new_users = sorted(set(whole.interactions["user_id"].to_pylist()) - set(old_users))
    late = whole.interactions.slice(1600)
    new_videos = sorted(set(late["video_id"].to_pylist()) - set(early.videos["video_id"].to_pylist()))
    assert len(new_users) >= 5
    assert len(new_videos) >= 5
    (base_user, base_video), (user, video) = towers(base), towers(tuned)
    assert all(known(base_user.ids, old_users))
    # The filter takes 1.4 % of others for known.
    assert sum(known(base_user.ids, new_users)) <= 1
    assert sum(known(base_video.ids, new_videos)) <= len(new_videos) // 4
    assert all(known(user.ids, old_users + new_users))
    assert all(
        known(
            video.ids,
            [
                each
                for each, is_known in zip(old_videos, known(base_video.ids, old_videos), strict=True)
                if is_known
            ],
        )
    )
    assert np.mean(known(video.ids, new_videos)) > 0.9
    metrics = tuned.read_metrics()
    assert metrics["new_users"] >= len(new_users) - 1
    assert metrics["new_videos"] >= 5
    assert metrics["log"]["last_seq"] == 2400
    assert 0 <= metrics["base_ndcg@10"] <= 1


def test_what_is_learned_begins_where_the_unknown_ones_are_and_moves_nobody_else() -> None:
    from keek_training.layers import HashEmbedding

    layer = HashEmbedding(256, 4, 0.0, 1, "ids")
    old, new, never = (hash_ids([f"{word}{i}" for i in range(20)]) for word in ("old", "new", "never"))
    layer(old)
    layer.unknown.assign(np.float32([1, 2, 3, 4]))
    layer.remember(old)
    before = {"old": np.asarray(layer(old)), "new": np.asarray(layer(new))}
    learned = layer.learn(np.concatenate([old[:5], new, new[:3], np.zeros((1, 2), np.int32)]))
    assert learned == 20 - sum(known(_frozen(layer, old), [f"new{i}" for i in range(20)]))
    np.testing.assert_allclose(np.asarray(layer(old)), before["old"], atol=1e-6)
    np.testing.assert_allclose(np.asarray(layer(new)), before["new"], atol=1e-5)
    assert all(known(layer, [f"new{i}" for i in range(20)]))
    assert known(layer, [""]) == [False]
    # They have rows of their own now: training can move them apart.
    layer.unknown.assign(np.zeros(4, np.float32))
    assert np.abs(np.asarray(layer(new))).sum() > 1
    assert np.abs(np.asarray(layer(never))).sum(axis=1).min() == 0


def _frozen(layer: Any, hashes: Any) -> Any:
    """A layer that remembers only these."""
    from keek_training.layers import HashEmbedding

    other = HashEmbedding(256, 4, 0.0, 1, "other")
    other(hashes)
    other.remember(hashes)
    return other


def sequences(is_new: list[bool], weights: list[float]) -> Sequences:
    count = len(is_new)
    return Sequences(
        user_ids=["u"],
        users=hash_ids(["u"]),
        offsets=np.array([0, count]),
        videos=np.arange(count, dtype=np.int32),
        kinds=np.ones(count, np.int32),
        times_us=np.arange(count),
        weights=np.float32(weights),
        is_new=np.array(is_new),
    )


def windows(count: int) -> Windows:
    """One a row, which is its target."""
    ends = np.arange(count)
    return Windows(np.zeros(count, np.int64), np.zeros(count, np.int64), ends, ends - 1)


@pytest.mark.parametrize(("replay", "old"), [(0.0, 0), (1.0, 2), (1.4, 3), (100.0, 8)])
def test_every_new_window_trains_with_its_share_of_old_ones(replay: float, old: int) -> None:
    from keek_training.fine_tuning import with_replay

    given = sequences([False] * 8 + [True] * 3, [1.0] * 10 + [0.0])
    chosen = with_replay(given, windows(11), replay, np.random.default_rng(1)).ends.tolist()
    assert chosen == sorted(set(chosen))
    assert {8, 9} <= set(chosen)
    assert sum(end < 8 for end in chosen) == min(old, 8)
    # The repetition at the end is new, and no target.
    assert len([end for end in chosen if end == 10]) == (1 if replay == 100.0 else 0)


def test_nothing_new_to_train_on_is_refused() -> None:
    from keek_training.fine_tuning import with_replay

    with pytest.raises(SetupError, match="nothing that is new"):
        with_replay(sequences([False, True], [1.0, 0.0]), windows(2), 1.0, np.random.default_rng(1))


def test_a_run_that_is_not_trained_is_no_base(tmp_path: Path) -> None:
    from keek_training.fine_tuning import fine_tuning_config

    with pytest.raises(SetupError, match=r"run 'none' is not trained"):
        fine_tuning_config(Run(tmp_path / "none"))


def test_the_clip_vectors_of_a_base_stay_standardised_as_they_were() -> None:
    from keek_training.layers import Standardise

    layer = Standardise()
    rows = np.random.default_rng(1).normal(3, 1, (50, 8)).astype(np.float32)
    layer(rows)
    assert not layer.is_fitted
    layer.fit(rows)
    assert layer.is_fitted
