"""The ranker: what it reads, how it is exported, and what the log of users with a known taste teaches it."""

from pathlib import Path

import numpy as np
import pytest
from benchmarks.simulated_ranking import World

from keek_server.experiments.logs import FloatArray
from keek_server.towers.contract import DIMENSION, RANKER, RANKING_FEATURES
from keek_server.towers.ranking import Candidates, RankedPage, ranker_batch, ranking_features
from keek_training.golden import golden_pages
from keek_training.ranker.judge import mean_ndcg
from keek_training.ranker.pages import Pages, Shown

# TensorFlow and Keras warn about themselves while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

HOUR_US = 3600 * 10**6


def candidates(count: int, seed: int = 3) -> Candidates:
    rng = np.random.default_rng(seed)
    return Candidates(
        rng.normal(size=(count, DIMENSION)).astype(np.float32),
        np.arange(count, dtype=np.uint64),
        np.full(count, 9.0, np.float32),
        np.zeros(count, np.int64),
        np.zeros(count, np.float32),
    )


def test_features_are_what_they_are_called() -> None:
    user = np.random.default_rng(1).normal(size=DIMENSION).astype(np.float32)
    own = candidates(3)
    own.popularity[:] = (0.0, 0.01, 0.0)
    own.create_times_us[:] = (0, HOUR_US, 3 * HOUR_US)
    history = np.stack([own.vectors[1], own.vectors[2], -own.vectors[2], own.vectors[2]])
    owners = np.array([1, 2, 0, 2], np.uint64)
    found = ranking_features(user, own, history, owners, 2 * HOUR_US)
    named = dict(zip(RANKING_FEATURES, found.T, strict=True))
    np.testing.assert_allclose(named["affinity"], own.vectors @ user, rtol=1e-5)
    np.testing.assert_allclose(named["popularity"], [0.0, np.log(101.0), 0.0], rtol=1e-5)
    # What is made in the future is new.
    np.testing.assert_allclose(named["age"], np.log([3.0, 2.0, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(named["duration"], np.log(10.0), rtol=1e-6)
    # Nobody is the owner 0.
    np.testing.assert_allclose(named["owner_share"], [0.0, 0.25, 0.5])
    assert named["max_similarity"][1] == pytest.approx(1.0, abs=1e-5)
    assert named["max_similarity"][2] == pytest.approx(1.0, abs=1e-5)
    assert (named["mean_similarity"] < named["max_similarity"]).all()


def test_a_candidate_s_features_do_not_depend_on_the_others_nor_does_a_history_have_to_be() -> None:
    user, own, none = np.ones(DIMENSION, np.float32), candidates(5), np.empty((0, DIMENSION), np.float32)
    no_owners = np.empty(0, np.uint64)
    whole = ranking_features(user, own, none, no_owners, HOUR_US)
    some = [3, 1]
    part = Candidates(
        own.vectors[some],
        own.owners[some],
        own.durations_s[some],
        own.create_times_us[some],
        own.popularity[some],
    )
    np.testing.assert_allclose(ranking_features(user, part, none, no_owners, HOUR_US), whole[some], rtol=1e-6)
    assert not whole[:, RANKING_FEATURES.index("owner_share") :].any()


def test_a_batch_is_padded_to_its_widest_page() -> None:
    pages = [
        RankedPage(
            np.full(DIMENSION, count, np.float32),
            np.ones((count, DIMENSION), np.float32),
            np.ones((count, len(RANKING_FEATURES)), np.float32),
        )
        for count in (2, 5, 0)
    ]
    tensors = ranker_batch(pages)
    assert {name: values.shape for name, values in tensors.items()} == {
        spec.name: (3, *(5 if size < 0 else size for size in spec.shape)) for spec in RANKER.inputs
    }
    assert tensors["mask"].sum(axis=1).tolist() == [2.0, 5.0, 0.0]
    assert not tensors["features"][0, 2:].any()


def test_it_begins_as_the_dot_product_and_is_exported_as_it_is(tmp_path: Path) -> None:
    from keek_training.contract_check import check_contract
    from keek_training.export import convert, difference
    from keek_training.ranker.model import RankerModel

    model, inputs = RankerModel(1), golden_pages()
    scores = np.asarray(model(inputs))
    there = inputs["mask"] > 0
    np.testing.assert_allclose(scores[there], inputs["features"][there][:, 0], rtol=1e-5)
    assert not scores[~there].any()
    rng = np.random.default_rng(2)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(scale=0.3, size=weight.shape))
    scores = np.asarray(model(inputs))
    assert not scores[~there].any()
    # A page's scores do not depend on how wide its batch is.
    width = int(inputs["mask"][3].sum())
    alone = {
        name: values[3:4] if name == "user_vector" else values[3:4, :width] for name, values in inputs.items()
    }
    np.testing.assert_allclose(np.asarray(model(alone))[0], scores[3, :width], rtol=1e-5, atol=1e-6)
    path = tmp_path / "ranker.onnx"
    convert(model, RANKER, path)
    check_contract(path, RANKER)
    assert difference(path, RANKER, inputs, scores) < 1e-4


def judged(scores: list[list[float]], rewards: list[list[float]], examined: FloatArray) -> float:
    count = len(rewards[0])
    own = candidates(count)
    page = RankedPage(own.vectors[0], own.vectors, np.zeros((count, len(RANKING_FEATURES)), np.float32))
    shown = [Shown(page, np.array(row), np.arange(count), n) for n, row in enumerate(rewards)]
    return mean_ndcg(Pages.of(shown), np.array(scores), examined)


def test_ndcg_by_hand() -> None:
    flat = np.ones(3)
    discounts = 1 / np.log2([2, 3, 4])
    assert judged([[3.0, 2.0, 1.0]], [[1.0, 0.0, 0.0]], flat) == pytest.approx(1.0)
    assert judged([[1.0, 2.0, 3.0]], [[1.0, 0.0, 0.0]], flat) == pytest.approx(discounts[2])
    best = discounts @ [2.0, 1.0, 0.0]
    assert judged([[3.0, 2.0, 1.0]], [[1.0, 0.0, 2.0]], flat) == pytest.approx(
        discounts @ [1.0, 0.0, 2.0] / best
    )
    # All the same: each place is as likely.
    assert judged([[1.0, 1.0, 1.0]], [[0.0, 0.0, 1.0]], flat) == pytest.approx(discounts.mean())
    # The last slot is looked at by a tenth: what was liked there is worth ten.
    examined = np.array([1.0, 1.0, 0.1])
    assert judged([[3.0, 2.0, 1.0]], [[1.0, 0.0, 1.0]], examined) == pytest.approx(
        discounts @ [1.0, 0.0, 10.0] / (discounts @ [10.0, 1.0, 0.0])
    )


def test_from_the_log_of_users_with_a_known_taste_it_learns_to_order_better_than_the_dot_product() -> None:
    from keek_training.ranker.fit import fit_ranker, scores_of

    rng = np.random.default_rng(4)
    world = World.draw(rng, 400, 3000)
    fitted = fit_ranker(Pages.of(world.log(rng, world.visits(rng, 6000), 0.1)))
    assert sum(fitted.page_counts) > 4000
    assert fitted.ndcg > fitted.ndcg_dot_product + 0.02
    # Each slot earns 0.9 of the one above it: 0.82 and 0.48.
    assert fitted.examined[:5].mean() == pytest.approx(0.82, abs=0.12)
    assert fitted.examined[5:10].mean() == pytest.approx(0.48, abs=0.2)
    later = world.visits(rng, 1500)
    everything = Pages.of(
        [
            Shown(world.page(later, number), np.ones(30), np.arange(30), number)
            for number in range(len(later.users))
        ]
    )
    before = world.earned(later, world.scores(later))
    best = world.earned(later, world.likes(later))
    ranked = world.earned(later, scores_of(fitted.model, everything))
    # Beyond what was shown as well: of thirty candidates, ten were.
    assert ranked > before + 0.7 * (best - before)
