"""Replays of splits and releases, against what they would really have earned."""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from tqdm import tqdm

from benchmarks.simulated_releases import Near
from benchmarks.simulated_users import Viewers
from keek_server.experiments.offpolicy import Replay
from keek_server.experiments.release_replay import replay_release
from keek_server.experiments.split_replay import Split, replay_split
from keek_server.feed.mixing import slots_of

_LOGGED: Final = Split(0.30, exploration=0.10)
_TARGET: Final = Split(0.40)
_VIDEO_EXPLORATION: Final = 0.10
_ESTIMATORS: Final = ("ips", "snips", "dr")
# What an error's name ends in; IPS is what counts.
_SUFFIXES: Final = {
    "ips": "",
    "snips": "_snips",
    "dr": "_dr",
    "ips_without_depth": "_without_depth",
    "log_as_it_is": "_of_the_log_as_it_is",
}


@dataclass(frozen=True, slots=True)
class _Run:
    """One replay of one log."""

    replay: Replay
    truth: float
    """What the target would really have earned."""
    others: Mapping[str, float] = field(default_factory=dict)
    """What is said in other ways, by name."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Of which the mean over the runs is told."""


def replays(rng: np.random.Generator, runs: int, count: int) -> dict[str, Any]:
    """How far the replay of a split is off, over some logs of so many users each."""

    def run() -> _Run:
        viewers = Viewers.draw(rng, count)
        truth = viewers.earned(_TARGET)
        exposures, rewards = viewers.log(rng, _LOGGED)
        own = replay_split(exposures, rewards, _TARGET, slots_of)
        flat = replay_split(exposures, rewards, _TARGET, slots_of, by_depth=False)
        return _Run(own, truth, others={"ips_without_depth": flat.ips.estimate.value})

    return _replayed("ope", runs, "replay", run) | {"ope_exploration": _LOGGED.exploration}


def release_replays(rng: np.random.Generator, runs: int, count: int) -> dict[str, Any]:
    """The same of another release."""

    def run() -> _Run:
        near = Near.draw(rng, count)
        truth = near.earned()
        own = replay_release(*near.log(rng, _VIDEO_EXPLORATION))
        facts = {
            "support": own.support,
            "differing_share": own.differing_share,
            "max_weight": own.replay.max_weight,
        }
        return _Run(own.replay, truth, facts=facts)

    found = _replayed("ope_release", runs, "replay of a release", run)
    return found | {"ope_release_video_exploration": _VIDEO_EXPLORATION}


def _replayed(prefix: str, runs: int, what: str, run: Callable[[], _Run]) -> dict[str, Any]:
    """How far each estimator, and what is said in other ways, is off over the runs."""
    errors: dict[str, list[float]] = defaultdict(list)
    facts: dict[str, list[float]] = defaultdict(list)
    covered = Counter[str]()
    for _ in progress(runs, what):
        one = run()
        own = one.replay
        _judge(own, one.truth, errors, covered)
        for name, value in {**one.others, "log_as_it_is": own.logged.value}.items():
            errors[name].append(value / one.truth - 1)
        for name, value in one.facts.items():
            facts[name].append(value)
        facts["effective_share"].append(own.effective_slot_count / own.slot_count)
    return {
        **{
            f"{prefix}_relative_error{_SUFFIXES[name]}": round(float(np.abs(each).mean()), 4)
            for name, each in errors.items()
        },
        f"{prefix}_relative_error_worst": _worst(errors),
        f"{prefix}_bias": {name: round(float(np.mean(each)), 4) for name, each in errors.items()},
        f"{prefix}_interval_coverage": {name: covered[name] / runs for name in _ESTIMATORS},
        **{f"{prefix}_{name}": round(float(np.mean(each)), 4) for name, each in facts.items()},
        f"{prefix}_slots": own.slot_count,
        f"{prefix}_runs": runs,
    }


def _judge(own: Replay, truth: float, errors: dict[str, list[float]], covered: Counter[str]) -> None:
    """Adds how far each estimator is off, and whether its interval holds the truth."""
    assert own.dr is not None
    for name, earned in zip(_ESTIMATORS, (own.ips, own.snips, own.dr), strict=True):
        errors[name].append(earned.estimate.value / truth - 1)
        # Of these very users: the difference between users is no part of what is asked.
        interval, lift = earned.lift_interval, truth / own.logged.value - 1
        covered[name] += interval.low <= lift <= interval.high


def _worst(errors: dict[str, list[float]]) -> float:
    return round(max(abs(error) for name in _ESTIMATORS for error in errors[name]), 4)


def progress(runs: int, what: str) -> Iterator[int]:
    """Counts runs, shown on standard error."""
    return iter(tqdm(range(runs), desc=what, file=sys.stderr, mininterval=1.0))
