"""The weights that a report proposes for an experiment that adapts."""

import numpy as np
import pytest

from keek_server.experiment_commands import _figures
from keek_server.experiments.definitions import (
    Adaptation,
    Arm,
    ExperimentDefinition,
    ExperimentState,
)
from keek_server.experiments.guardrails import FeedHealth
from keek_server.experiments.logs import Exposures, Interactions
from keek_server.experiments.reading import Logged
from keek_server.experiments.registry import Experiment, StoppedArm
from keek_server.interactions.kinds import InteractionKind
from keek_server.settings import Settings

HOUR_US = 3600 * 1_000_000
START_US = 10**15
SLOTS = 10
LIKE_RATES = (0.1, 0.12, 0.2)


def logged(users: int = 3_000) -> Logged:
    """A feed each, in one of three arms; the last one is liked most."""
    rng = np.random.default_rng(1)
    arms = rng.integers(3, size=users).astype(np.int16)
    times = START_US + np.sort(rng.integers(0, HOUR_US, users))
    shown = users * SLOTS
    unknown = np.full(shown, np.nan, np.float32)
    exposures = Exposures(
        users=np.arange(users),
        arms=arms,
        times_us=times,
        offsets=np.arange(users + 1) * SLOTS,
        firsts=np.zeros(users, np.int64),
        videos=np.arange(shown),
        sources=np.ones(shown, np.int8),
        scores=np.zeros(shown, np.float32),
        source_propensities=unknown,
        video_propensities=unknown,
    )
    liked = np.flatnonzero(rng.random(shown) < np.repeat(np.array(LIKE_RATES)[arms], SLOTS))
    who = liked // SLOTS
    kinds = np.full(len(liked), InteractionKind.LIKE, np.int8)
    nothing = np.full(len(liked), np.nan)
    interactions = Interactions(who, liked, kinds, times[who] + 1_000, nothing, nothing)
    fine = np.full(users, SLOTS)
    health = FeedHealth(np.arange(users), arms, np.ones(users, np.float32), fine, fine, np.zeros(users, bool))
    return Logged(exposures, health, interactions, [], [])


def experiment(weights: tuple[float, ...], *stopped: str) -> Experiment:
    arms = [
        Arm(name=name, weight=own) for name, own in zip(("control", "good", "slow"), weights, strict=True)
    ]
    definition = ExperimentDefinition(
        experiment_id="mix",
        traffic_percent=100.0,
        arms=tuple(arms),
        adaptation=Adaptation(metric="likes", floor=0.05),
    )
    gone = tuple(StoppedArm(name, "too slow", START_US + HOUR_US) for name in stopped)
    return Experiment(
        definition, ExperimentState.RUNNING, START_US, start_time_us=START_US, stopped_arms=gone
    )


def new_weights(own: Experiment, seen: Logged) -> dict[str, float] | None:
    found: dict[str, float] | None = _figures(own, seen, 24 * HOUR_US, Settings())["new_weights"]
    return found


def test_users_move_to_the_best_arm() -> None:
    found = new_weights(experiment((2.0, 2.0, 2.0)), logged())
    assert found is not None
    assert sum(found.values()) == pytest.approx(6.0)
    assert found["slow"] == pytest.approx(2.0 + 0.1 * 6.0)


def test_none_move_to_the_best_arm_once_it_is_stopped() -> None:
    found = new_weights(experiment((2.0, 2.0, 2.0), "slow"), logged())
    assert found is not None
    assert set(found) == {"control", "good"}
    assert sum(found.values()) == pytest.approx(4.0)
    assert found["good"] == pytest.approx(2.0 + 0.1 * 4.0)


def test_nothing_changes_where_one_arm_is_left_or_nothing_is_known() -> None:
    assert new_weights(experiment((1.0, 1.0, 1.0), "good", "slow"), logged()) is None
    assert new_weights(experiment((1.0, 2.0, 4.0)), logged(users=0)) is None
