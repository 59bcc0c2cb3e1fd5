"""What a busy machine does to the times of calls, and what it does not do."""

import numpy as np
import pytest

from keek_training.gates.times import undisturbed_ms


def test_a_busy_machine_makes_most_calls_longer_and_no_tower_slower() -> None:
    alone = np.random.default_rng(1).normal(3.0, 0.1, 100)
    beside_others = np.where(np.arange(100) % 5, alone + 15.0, alone)
    assert undisturbed_ms(beside_others.tolist()) == pytest.approx(undisturbed_ms(alone.tolist()), rel=0.1)


def test_a_tower_that_takes_longer_is_slower() -> None:
    times_ms = np.random.default_rng(1).normal(3.0, 0.1, 100)
    assert undisturbed_ms((10 * times_ms).tolist()) == pytest.approx(10 * undisturbed_ms(times_ms.tolist()))


def test_few_calls_are_enough() -> None:
    assert undisturbed_ms([2.0, 2.0, 2.0, 2.0, 40.0]) == 2.0
