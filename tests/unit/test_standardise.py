"""How the towers bring clip vectors to size, on a corpus larger than what is looked at."""

import tracemalloc

import numpy as np
import pytest

from keek_server.towers.features import Float16Array
from keek_training.layers import Standardise

COUNT, DIMENSION = 400_000, 16


@pytest.fixture(scope="module")
def vectors() -> Float16Array:
    rng = np.random.default_rng(1)
    rows = (3.0 + 0.5 * rng.standard_normal((COUNT, DIMENSION), np.float32)).astype(np.float16)
    # As of videos without a clip vector.
    rows[::2] = 0
    return rows


def fitted(vectors: Float16Array) -> Standardise:
    layer = Standardise()
    layer.build((None, vectors.shape[1]))
    layer.fit(vectors)
    return layer


def test_a_sample_gives_the_mean_and_the_scale_of_all_that_are_not_zero(
    vectors: Float16Array,
) -> None:
    layer = fitted(vectors)
    np.testing.assert_allclose(np.asarray(layer.mean), 3.0, atol=0.02)
    assert float(layer.scale) == pytest.approx(1 / 0.5, rel=0.01)


def test_the_same_vectors_give_the_same_layer(
    vectors: Float16Array,
) -> None:
    one, other = fitted(vectors), fitted(vectors)
    assert np.array_equal(np.asarray(one.mean), np.asarray(other.mean))
    assert float(one.scale) == float(other.scale)


def test_a_few_vectors_count_all(vectors: Float16Array) -> None:
    few = vectors[:1001]
    rows = few[1::2].astype(np.float32)
    layer = fitted(few)
    np.testing.assert_allclose(np.asarray(layer.mean), rows.mean(axis=0), rtol=1e-5)
    assert float(layer.scale) == pytest.approx(1 / rows.std(), rel=0.01)


def test_a_large_corpus_is_not_copied(
    vectors: Float16Array,
) -> None:
    fitted(vectors[:100])
    tracemalloc.start()
    try:
        fitted(vectors)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < vectors.nbytes
