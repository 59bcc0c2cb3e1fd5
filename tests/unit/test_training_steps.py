"""Parts of a training step: the fast softmax, batches of several lengths, the learning rate."""

from typing import Any

import numpy as np
import pytest

from keek_training.batches import Batches, Mixed
from keek_training.config import TowerConfig, TrainConfig
from keek_training.datasets.synth import SynthConfig, synthesise
from keek_training.features import Sequences, catalogue_of, sequences_of
from keek_training.golden import golden_users
from keek_training.windows import fill, split

# TensorFlow and Keras warn about themselves while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

_LENGTH = 16


@pytest.fixture(scope="module")
def sequences() -> Sequences:
    dataset = synthesise(SynthConfig(users=90, videos=300, interactions=3000, end_us=1_750_000_000_000_000))
    return sequences_of(dataset, catalogue_of(dataset), TrainConfig().kind_weights)


@pytest.mark.parametrize("size", [0.3, 3.0, 8.0])
def test_the_softmax_in_half_precision_has_the_values_and_gradients_of_the_exact_one(size: float) -> None:
    import tensorflow as tf

    from keek_training.softmax import log_partition

    rng = np.random.default_rng(5)
    # The largest of these are beyond what exp takes: sums are shifted. Eight bits of a score of 200 say
    # little of what comes behind its point.
    users = tf.constant(rng.normal(size=(40, 64)) * size, tf.float32)
    videos = tf.constant(rng.normal(size=(500, 64)) * (0.3 if size < 8 else 1.0), tf.float32)
    weights = tf.constant(rng.uniform(size=40), tf.float32)

    def exact(users: Any, videos: Any) -> Any:
        return tf.reduce_logsumexp(users @ tf.transpose(videos), axis=-1)

    results = []
    for partition in (log_partition, exact):
        with tf.GradientTape() as tape:
            tape.watch((users, videos))
            found = partition(users, videos)
            loss = tf.reduce_sum(found * weights)
        results.append([found.numpy(), *(g.numpy() for g in tape.gradient(loss, (users, videos)))])
    for found, expected in zip(*results, strict=True):
        assert np.isfinite(found).all()
        assert np.linalg.norm(found - expected) <= (0.02 if size < 8 else 0.05) * np.linalg.norm(expected)


def test_a_score_that_no_float_could_exponentiate_is_no_infinity() -> None:
    from keek_training.softmax import log_partition

    users, videos = np.full((2, 64), 4.0, np.float32), np.full((3, 64), 4.0, np.float32)
    np.testing.assert_allclose(np.asarray(log_partition(users, videos)), 1024 + np.log(3), rtol=1e-3)


def test_all_that_makes_a_pass_fast_trains_together_and_a_user_is_what_the_user_did() -> None:
    from keek_training.fine_tuning import learn_ids
    from keek_training.train import train

    dataset = synthesise(SynthConfig(users=60, videos=120, interactions=2400, end_us=1_750_000_000_000_000))
    towers = {"history_length": 16, "blocks": 1, "feed_forward": 16, "content_width": 16}
    config = TrainConfig.of(
        {
            "towers": towers | {"age_bias": False, "user_dropout": 1.0},
            "epochs": 3,
            "batch_size": 16,
            "padded_lengths": 2,
            "overlap": 0.25,
            "cooldown": 0.5,
            "softmax_precision": "bfloat16",
            "validation_users": 20,
        }
    )
    trained = train(dataset, config)
    assert trained.history[-1].loss < trained.history[0].loss
    inputs = golden_users(16)
    known = inputs | {"user": np.resize(trained.sequences.users, inputs["user"].shape)}
    found = [np.asarray(trained.model.user_tower(own)) for own in (inputs, known)]
    np.testing.assert_array_equal(*found)
    counts = np.ones(len(trained.catalogue), np.float32)
    learnt = learn_ids(trained.model, trained.config.towers, trained.catalogue, trained.sequences, counts)
    assert learnt["new_users"] == 0


@pytest.mark.parametrize("padded_lengths", [1, 3])
def test_each_target_is_trained_once_in_the_shortest_window_that_holds_its_history(
    sequences: Sequences, padded_lengths: int
) -> None:
    from keek_training.train import batches_of

    towers = TowerConfig(history_length=_LENGTH)
    config = TrainConfig(towers=towers, padded_lengths=padded_lengths, batch_size=8)
    windows = split(sequences, _LENGTH, 0, np.random.default_rng(0)).training
    batches = batches_of(config, sequences, windows, None, np.random.default_rng(1))
    steps = list(batches)
    assert len(steps) == len(batches)
    shapes = {batch["videos"].shape for batch in steps}
    assert shapes == {(8, 16)} if padded_lengths == 1 else {(8, 16), (16, 8), (32, 4)}
    counts = np.zeros(300)
    for batch in steps:
        trained = batch["weights"] > 0
        np.add.at(counts, batch["targets"][trained], 1)
        if padded_lengths > 1 and batch["videos"].shape[1] > 4:
            # More than half of it is needed, by what is no filling up of the batch.
            own = np.unique(batch["positions"][trained] // batch["videos"].shape[1])
            assert (np.count_nonzero(batch["kinds"][own], axis=1) >= batch["videos"].shape[1] // 2).all()
    expected = np.bincount(sequences.videos[sequences.weights > 0], minlength=300)
    np.testing.assert_array_equal(counts, expected)


def test_each_epoch_mixes_the_lengths_anew(sequences: Sequences) -> None:
    windows = split(sequences, _LENGTH, 0, np.random.default_rng(0)).training
    rng = np.random.default_rng(2)
    parts = [
        Batches(sequences, windows, length=length, batch_size=8, negatives=None, rng=rng)
        for length in (8, 16)
    ]
    mixed = Mixed(parts, rng)
    orders = [[batch["videos"].shape[1] for batch in mixed] for _ in range(2)]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.75])
def test_windows_overlap_as_told(sequences: Sequences, overlap: float) -> None:
    windows = split(sequences, _LENGTH, 0, np.random.default_rng(0), overlap).training
    filled = fill(sequences, windows, _LENGTH)
    trained = (windows.ends[:, None] - np.arange(_LENGTH - 1, -1, -1))[filled.weights > 0]
    assert sorted(trained) == np.flatnonzero(sequences.weights).tolist()
    context = np.cumsum(filled.kinds > 0, axis=1)[filled.weights > 0]
    users = np.searchsorted(sequences.offsets, trained, side="right") - 1
    whole = trained - sequences.offsets[users]
    assert (context >= np.minimum(whole, overlap * _LENGTH)).all()


def test_the_moving_average_is_what_is_measured_and_kept() -> None:
    from keek_training.train import train
    from keek_training.trained import Trained

    dataset = synthesise(SynthConfig(users=40, videos=100, interactions=1000, end_us=1_750_000_000_000_000))
    towers = {"history_length": 8, "blocks": 1, "feed_forward": 16, "content_width": 16, "user_dropout": 1.0}

    def measured(average: float) -> tuple[list[Any], Any]:
        values: list[Any] = []

        def measure(trained: Trained) -> dict[str, float]:
            values.append(np.array(trained.model.video_tower.ids.tables[0]))
            return {"ndcg@10": float(len(values))}

        values_of = {"towers": towers, "epochs": 3, "batch_size": 512, "set_targets": {}, "average": average}
        trained = train(dataset, TrainConfig.of(values_of), measure=measure)
        assert trained.steps == 1
        return values, np.array(trained.model.video_tower.ids.tables[0])

    # Both take the same steps: averaging changes nothing of them.
    (own, _), (averages, kept) = measured(0.0), measured(0.75)
    expected = own[0]
    for value, average in zip(own, averages, strict=True):
        expected = 0.75 * expected + 0.25 * value
        np.testing.assert_allclose(average, expected, atol=1e-6)
    assert np.abs(own[2] - averages[2]).max() > 1e-4
    np.testing.assert_array_equal(kept, averages[2])


def test_the_rate_rises_stays_and_falls_to_nothing_in_the_last_share_of_the_steps() -> None:
    from keek_training.optimiser import Trapezium

    rate = Trapezium(0.1, warm_up=10, steps=100, cooldown=0.4)
    steps = [0, 4, 9, 40, 60, 80, 100]
    found = [float(rate(step)) for step in steps]
    np.testing.assert_allclose(found, [0.01, 0.05, 0.1, 0.1, 0.1, 0.05, 0.0], atol=1e-6)
