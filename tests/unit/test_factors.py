"""Towers that begin as a matrix factorisation: what is served is what was factorised, and content speaks for
videos that nobody met."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from scipy import sparse
from threadpoolctl import threadpool_limits

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_server.towers.contract import CLIP_DIMENSION
from keek_server.towers.features import Tensors, hash_ids
from keek_training.config import Factors, TowerConfig, TrainConfig
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.synth import SynthConfig, synthesise
from keek_training.export import export
from keek_training.factors import factorised, main_directions, spread
from keek_training.features import IS_NEW
from keek_training.fine_tuning import fine_tuning_config
from keek_training.fit import video_vectors
from keek_training.ridge import LOG_SKIP
from keek_training.runs import Run
from keek_training.towers import VideoTower
from keek_training.train import train
from keek_training.train_run import train_run
from keek_training.trained import Trained
from keek_training.validation import serving_inputs

# TensorFlow and Keras warn about themselves while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

_DIMENSIONS, _CONTENT = 40, 24
CONFIG = TrainConfig.of(
    {
        "towers": {
            "encoder": "ridge",
            "solver_steps": 32,
            "history_length": 60,
            "clip_width": _CONTENT,
            "content_width": 2 * _CONTENT,
            "user_dropout": 1.0,
        },
        "factors": {
            "dimensions": _DIMENSIONS,
            "alpha": 20.0,
            "regularization": 40.0,
            "content_weight": 0.3,
            "unknown_content": 3.0,
            "sharpness": 5.0,
        },
        "epochs": 0,
        "validation_users": 30,
    }
)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Users who like what looks like their own direction; nobody met the last videos."""
    made = synthesise(SynthConfig(users=120, videos=200, interactions=2500, end_us=1_750_000_000_000_000))
    rng = np.random.default_rng(1)
    clips = np.zeros((200, CLIP_DIMENSION), np.float16)
    clips[:, :40] = rng.normal(size=(200, 40))
    kept = pc.invert(pc.is_in(made.interactions["video_id"], made.videos["video_id"].combine_chunks()[-20:]))
    rows = made.interactions.filter(kept).combine_chunks()
    return replace(made, interactions=rows, clip_vectors=clips)


@pytest.fixture(scope="module")
def begun(dataset: Dataset) -> Trained:
    return train(dataset, CONFIG)


def _met(begun: Trained) -> np.ndarray:
    """Videos that were a target in what is not held out: bool [videos]."""
    sequences, validation = begun.sequences, begun.parts.validation
    met = np.zeros(len(begun.catalogue), np.bool_)
    stops = sequences.offsets[1:].copy()
    stops[validation.users] = validation.ends
    for start, stop in zip(sequences.offsets[:-1], stops, strict=True):
        rows = np.arange(start, stop)
        met[sequences.videos[rows[sequences.weights[rows] > 0]]] = True
    return met


def test_a_users_vector_is_the_ridge_regression_on_factors_and_content(begun: Trained) -> None:
    factors = begun.config.factors
    assert factors is not None
    sequences, vectors = begun.sequences, video_vectors(begun)
    requests = begun.parts.validation
    inputs = serving_inputs(sequences, requests, vectors, 60)
    found = np.asarray(begun.model.user_tower(inputs))
    for row in range(len(requests)):
        kinds = inputs["history_kinds"][row]
        read = inputs["history_vectors"][row][kinds > 0].astype(np.float64)
        weights = np.where(kinds[kinds > 0] == InteractionKind.SKIP, np.exp(LOG_SKIP), 1)[:, None]
        expected = np.linalg.solve(np.eye(64) + (read * weights).T @ read, (read * weights).sum(axis=0))
        expected *= factors.sharpness
        np.testing.assert_allclose(found[row], expected, atol=2e-3 * max(1, np.abs(expected).max()))


def test_what_nobody_met_is_its_content_alone_and_longer(begun: Trained, dataset: Dataset) -> None:
    vectors, features = video_vectors(begun), begun.catalogue.features
    new = vectors[-20:]
    np.testing.assert_allclose(new[:, :_DIMENSIONS], 0, atol=1e-4)
    hidden: Tensors = features | {"video": hash_ids([f"never met {i}" for i in range(len(vectors))])}
    alone = np.asarray(begun.model.video_tower(hidden))
    np.testing.assert_allclose(alone[-20:], new, atol=1e-4)
    old = _met(begun)
    assert 100 < old.sum() <= 180
    longer = np.isclose(alone[old][:, _DIMENSIONS:], 3 * vectors[old][:, _DIMENSIONS:], atol=1e-3)
    # The filter takes 1.4 % of others for known.
    assert longer.all(axis=1).mean() > 0.95
    lengths = np.sqrt(np.mean(np.sum(vectors[old][:, _DIMENSIONS:] ** 2, axis=1)))
    assert lengths == pytest.approx(0.3**0.5, rel=0.1)
    assert np.abs(vectors[old][:, :_DIMENSIONS]).max() > 0.1


def test_one_factorisation_has_ials_own_scores() -> None:
    from implicit.cpu.als import AlternatingLeastSquares

    rng = np.random.default_rng(6)
    drawn = (rng.random((80, 100)) < 0.1).astype(np.float32)
    drawn[:, 7] = 0
    met = sparse.csr_matrix(drawn)
    # implicit counts a met video once less among what a user's factors are held by: little of so much.
    options = Factors(dimensions=64, alpha=2000.0, regularization=4000.0, restarts=1)
    with threadpool_limits(1, "blas"):
        als = AlternatingLeastSquares(64, 4000.0, 2000.0, iterations=15, num_threads=1, random_state=3)
        als.fit(met, show_progress=False)
        users = als.recalculate_user(np.arange(80), met)
    keys = factorised(options, met, 3).astype(np.float64)
    assert not keys[7].any()
    for user in range(80):
        read = keys[met[user].indices]
        found = keys @ np.linalg.solve(np.eye(64) + read.T @ read, read.sum(axis=0))
        expected = als.item_factors @ users[user]
        expected[7] = 0
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_the_mean_of_several_is_near_each_and_the_same_as_none() -> None:
    rng = np.random.default_rng(6)
    met = sparse.csr_matrix((rng.random((80, 100)) < 0.1).astype(np.float32))
    options = Factors(dimensions=64, alpha=20.0, regularization=30.0, restarts=1)
    single = [factorised(options, met, seed) for seed in (1, 2, 3)]
    mean = factorised(options.model_copy(update={"restarts": 3}), met, 1)
    wanted = np.mean([own @ own.T for own in single], axis=0)
    assert np.linalg.norm(mean @ mean.T - wanted) < 0.1 * np.linalg.norm(wanted)
    # Three of rank 64 have more directions than 64: the nearest has no others that matter.
    assert np.linalg.norm(mean @ mean.T - wanted) <= min(
        np.linalg.norm(own @ own.T - wanted) for own in single
    )


def test_without_a_pass_the_start_is_measured(begun: Trained) -> None:
    assert begun.history == []
    assert begun.metrics["best_epoch"] == 0
    assert begun.metrics["validation_users"] == 30
    assert 0 <= begun.metrics["ndcg@10"] <= 1


def test_what_is_held_out_is_not_factorised(begun: Trained, dataset: Dataset) -> None:
    everything = train(dataset, CONFIG.model_copy(update={"validation_users": 0}))
    assert np.abs(video_vectors(everything) - video_vectors(begun)).max() > 1e-3


def test_training_goes_on_from_there(dataset: Dataset) -> None:
    trained = train(dataset, CONFIG.model_copy(update={"epochs": 2, "learning_rate": 1e-3}))
    assert [epoch.epoch for epoch in trained.history] == [1, 2]
    assert trained.history[1].loss < trained.history[0].loss


def test_the_tables_add_up_to_the_vectors() -> None:
    rng = np.random.default_rng(2)
    hashes = hash_ids([f"v{i}" for i in range(300)])
    vectors = rng.normal(size=(300, 64)).astype(np.float32)
    first, second = spread(hashes, vectors, 1024)
    assert first.shape == second.shape == (1024, 64)
    found = first[hashes[:, 0] % 1024] + second[hashes[:, 1] % 1024]
    np.testing.assert_allclose(found, vectors, atol=1e-3)


def test_the_directions_are_those_in_which_vectors_differ_most() -> None:
    rng = np.random.default_rng(4)
    vectors = (rng.normal(size=(3000, 8)) * [1, 9, 1, 4, 1, 1, 1, 1]).astype(np.float32)
    vectors[::3] = 0
    found = main_directions(vectors, 2)
    assert np.argmax(np.abs(found), axis=0).tolist() == [1, 3]
    projected = vectors[vectors.any(axis=1)] @ found
    assert np.mean(np.sum(projected**2, axis=1)) == pytest.approx(1, rel=1e-3)
    spread_out = np.sqrt(np.mean(projected**2, axis=0))
    assert spread_out[0] / spread_out[1] == pytest.approx((9 / 4) ** 0.7, rel=0.05)


@pytest.mark.parametrize("count", [0, 3])
def test_without_clip_vectors_there_is_no_direction(count: int) -> None:
    found = main_directions(np.zeros((5, 8), np.float32), count)
    assert found.shape == (8, count)
    assert not found.any()


def test_narrow_towers_are_refused() -> None:
    buckets = dict.fromkeys(("video_buckets", "owner_buckets", "tag_buckets", "user_buckets"), 64)
    tower = VideoTower(TowerConfig(clip_width=8, content_width=12, **buckets), 1)
    with pytest.raises(SetupError, match="need a clip_width of 7 and a content_width of 14"):
        tower.begin_content(np.eye(CLIP_DIMENSION, 64, dtype=np.float32) * (np.arange(64) < 7))


def test_such_a_run_is_exported_and_fine_tuned_without_beginning_again(
    dataset: Dataset, tmp_path: Path
) -> None:
    base, tuned = Run(tmp_path / "base"), Run(tmp_path / "tuned")
    train_run(dataset, CONFIG, base)
    report = export(base)
    assert report["user_tower"]["max_abs_difference"] < 1e-4
    rows = dataset.interactions
    is_new = np.arange(rows.num_rows) >= rows.num_rows - 200
    marked = replace(dataset, interactions=rows.append_column(IS_NEW, pa.array(is_new)))
    config = fine_tuning_config(base).model_copy(update={"epochs": 1, "learning_rate": 1e-6})
    train_run(marked, config, tuned, base=base)
    assert tuned.read_metrics()["epochs"] == 1
    with np.load(base.weights("video_tower")) as old, np.load(tuned.weights("video_tower")) as new:
        kept = np.isclose(old["ids/table_0"], new["ids/table_0"], atol=1e-3).all(axis=1)
        assert not np.array_equal(old["ids/table_0"], new["ids/table_0"])
    # A video that the base held out alone is new to it, and takes a row.
    assert kept.mean() > 0.98
