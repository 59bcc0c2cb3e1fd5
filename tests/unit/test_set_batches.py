"""Requests with several targets: what is read, what is asked for, and that it is drawn anew."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from keek_training.bags import SetBatches
from keek_training.config import SetTargets, TowerConfig, TrainConfig
from keek_training.datasets.synth import SynthConfig, synthesise
from keek_training.features import Catalogue, Sequences, catalogue_of, sequences_of
from keek_training.model import TwoTowers
from keek_training.train import fitted_towers, train

_LENGTH = 20


@pytest.fixture(scope="module")
def data() -> tuple[Catalogue, Sequences, TrainConfig]:
    dataset = synthesise(SynthConfig(users=60, videos=300, interactions=3000, end_us=1_750_000_000_000_000))
    catalogue, config = catalogue_of(dataset), TrainConfig()
    sequences = sequences_of(dataset, catalogue, config.kind_weights)
    towers = fitted_towers(config.towers, dataset, sequences)
    return catalogue, sequences, config.model_copy(update={"towers": towers})


@pytest.fixture(scope="module")
def sequences(data: tuple[Catalogue, Sequences, TrainConfig]) -> Sequences:
    return data[1]


def _batches(sequences: Sequences, options: SetTargets, stops: np.ndarray | None = None) -> SetBatches:
    stops = sequences.offsets[1:] if stops is None else stops
    rng = np.random.default_rng(5)
    return SetBatches(sequences, stops, length=_LENGTH, batch_size=16, options=options, rng=rng)


def _requests(sequences: Sequences, batches: SetBatches) -> Iterator[tuple[int, dict[str, Any]]]:
    """The user of each request of an epoch that is no filling, and its tensors."""
    numbers = {tuple(hashes): user for user, hashes in enumerate(sequences.users.tolist())}
    for batch in batches:
        for row in range(len(batch["user"])):
            if batch["weights"][row].any():
                yield numbers[tuple(batch["user"][row].tolist())], {k: v[row] for k, v in batch.items()}


def _known(sequences: Sequences, user: int) -> tuple[list[int], list[float]]:
    own = slice(sequences.offsets[user], sequences.offsets[user + 1])
    return sequences.videos[own].tolist(), sequences.weights[own].tolist()


def test_what_comes_later_is_asked_of_what_came_before(sequences: Sequences) -> None:
    asked = 0
    for user, request in _requests(sequences, _batches(sequences, SetTargets(most=500))):
        videos, weights = _known(sequences, user)
        chosen = request["weights"] > 0
        targets = dict(zip(request["targets"][chosen].tolist(), request["weights"][chosen], strict=True))
        cut = len(videos) - max(
            place for place in range(1, len(videos) + 1) if videos[-place] in targets and weights[-place]
        )
        expected = {v: w for v, w in zip(videos[cut:], weights[cut:], strict=True) if w}
        assert targets == expected
        read = request["videos"][request["kinds"] > 0].tolist()
        assert read == videos[max(0, cut - _LENGTH) : cut]
        times_us = sequences.times_us[sequences.offsets[user] :]
        if read:
            assert request["ages_s"][-1] == pytest.approx((times_us[cut] - times_us[cut - 1]) / 1e6, rel=1e-6)
        asked += 1
    assert asked == len(sequences.user_ids)


def test_a_horizon_asks_for_the_next_targets_alone(sequences: Sequences) -> None:
    whole = dict(_requests(sequences, _batches(sequences, SetTargets(most=500))))
    near = dict(_requests(sequences, _batches(sequences, SetTargets(most=500, horizon=3))))
    assert whole.keys() == near.keys()
    for user, request in near.items():
        counts = (request["weights"] > 0).sum(), (whole[user]["weights"] > 0).sum()
        assert counts[0] == min(3, counts[1])
        read, expected = (own["videos"][own["kinds"] > 0] for own in (request, whole[user]))
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("shuffled", [False, True])
def test_what_is_hidden_is_asked_of_the_rest(sequences: Sequences, shuffled: bool) -> None:
    options = SetTargets(asked="hidden", most=500, hidden_share=(0.3, 0.6), shuffled=shuffled)
    in_order = []
    for user, request in _requests(sequences, _batches(sequences, options)):
        videos, weights = _known(sequences, user)
        targets = set(request["targets"][request["weights"] > 0].tolist())
        read = request["videos"][request["kinds"] > 0].tolist()
        assert read
        assert not targets & set(read)
        wanted = {v for v, w in zip(videos, weights, strict=True) if w}
        assert targets <= wanted
        left = [video for video in videos if video in set(videos) - targets]
        if len(left) <= _LENGTH:
            # What is hidden and no target is in neither.
            assert set(read) <= set(left)
        in_order.append(read == [video for video in videos if video in read][-len(read) :])
    assert all(in_order) is not shuffled


def test_every_epoch_draws_anew_and_users_of_many_targets_ask_more_often(sequences: Sequences) -> None:
    batches = _batches(sequences, SetTargets(most=4))
    first, second = (list(_requests(sequences, batches)) for _ in range(2))
    counts = np.bincount([user for user, _ in first], minlength=len(sequences.user_ids))
    owners = np.repeat(np.arange(len(sequences.user_ids)), np.diff(sequences.offsets))
    targets = np.bincount(owners[sequences.weights > 0], minlength=len(sequences.user_ids))
    np.testing.assert_array_equal(counts, -(-targets // 4))
    assert len(batches) == -(-counts.sum() // 16)
    assert [user for user, _ in first] != [user for user, _ in second]


def test_requests_are_padded_to_no_more_than_their_batch_needs(sequences: Sequences) -> None:
    widths = []
    steps: Iterable[dict[str, Any]] = _batches(sequences, SetTargets(most=1))
    for batch in steps:
        longest = int((batch["kinds"] > 0).sum(axis=1).max())
        widths.append(batch["videos"].shape[1])
        assert widths[-1] == min(width for width in (5, 10, 20) if width >= longest)
        assert {batch[name].shape for name in ("videos", "kinds", "ages_s")} == {(16, widths[-1])}
    assert set(widths) == {5, 10, 20}


def test_what_is_held_out_is_neither_read_nor_asked_for(sequences: Sequences) -> None:
    stops = (sequences.offsets[:-1] + sequences.offsets[1:]) // 2
    for options in (SetTargets(), SetTargets(asked="hidden")):
        for user, request in _requests(sequences, _batches(sequences, options, stops)):
            own = set(sequences.videos[sequences.offsets[user] : stops[user]].tolist())
            assert set(request["videos"][request["kinds"] > 0].tolist()) <= own
            assert set(request["targets"][request["weights"] > 0].tolist()) <= own


@pytest.mark.parametrize("spare_read", [False, True])
def test_the_loss_of_a_set_is_the_mean_cross_entropy_of_its_videos(
    data: tuple[Catalogue, Sequences, TrainConfig], spare_read: bool
) -> None:
    catalogue, sequences, config = data
    model = TwoTowers(config.towers, catalogue.features, seed=1, spare_read=spare_read)
    batch: dict[str, Any] = next(iter(_batches(sequences, SetTargets(most=3))))
    losses = np.asarray(model(batch))
    vectors = np.asarray(model.video_tower(catalogue.features))
    history = vectors[batch["videos"]] * (batch["kinds"] > 0)[..., None]
    users = np.asarray(
        model.user_tower(
            {
                "user": batch["user"],
                "history_vectors": history,
                "history_kinds": batch["kinds"],
                "history_ages_s": batch["ages_s"],
            }
        )
    )
    logits = users @ vectors.T
    if spare_read:
        for row, videos, kinds in zip(logits, batch["videos"], batch["kinds"], strict=True):
            row[videos[kinds > 0]] = -np.inf
    whole = np.log(np.exp(logits).sum(axis=1, keepdims=True))
    weights = batch["weights"]
    # What fills a set up has no weight, and may be anything.
    own = np.where(weights > 0, np.take_along_axis(logits, batch["targets"], axis=1), 0)
    expected = np.where(weights > 0, whole - own, 0)
    np.testing.assert_allclose(np.where(weights > 0, losses, 0), expected, rtol=1e-4)
    mean = float(np.asarray(model.compute_loss(x=batch, y_pred=losses)))
    assert mean == pytest.approx(float((expected * weights).sum() / weights.sum()), rel=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # TensorFlow's and Keras'
def test_a_training_that_holds_nothing_out_runs_all_its_passes() -> None:
    dataset = synthesise(SynthConfig(users=40, videos=100, interactions=1000, end_us=1_750_000_000_000_000))
    towers = TowerConfig(blocks=1, history_length=8, user_dropout=1.0)
    trained = train(
        dataset, TrainConfig(towers=towers, epochs=2, validation_users=0, set_targets=SetTargets())
    )
    assert [epoch.epoch for epoch in trained.history] == [1, 2]
    assert trained.history[1].loss < trained.history[0].loss
    assert "ndcg@10" not in trained.metrics
    # Nobody is known by an id.
    assert not np.asarray(trained.model.user_tower.ids.known[0]).any()
