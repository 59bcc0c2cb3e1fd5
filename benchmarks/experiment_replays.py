"""Replays of splits and releases, against what they would really have earned."""

import sys
from collections import Counter
from collections.abc import Iterator
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


def replays(rng: np.random.Generator, runs: int, count: int) -> dict[str, Any]:
    """How far the replay of a split is off, over some logs of so many users each."""
    names = (*_ESTIMATORS, "ips_without_depth", "log_as_it_is")
    errors: dict[str, list[float]] = {name: [] for name in names}
    covered, shares, slot_count = Counter[str](), [], 0
    for _ in progress(runs, "replay"):
        viewers = Viewers.draw(rng, count)
        truth = viewers.earned(_TARGET)
        exposures, rewards = viewers.log(rng, _LOGGED)
        own = replay_split(exposures, rewards, _TARGET, slots_of)
        flat = replay_split(exposures, rewards, _TARGET, slots_of, by_depth=False)
        _judge(own, truth, errors, covered)
        errors["ips_without_depth"].append(flat.ips.estimate.value / truth - 1)
        errors["log_as_it_is"].append(own.logged.value / truth - 1)
        shares.append(own.effective_slot_count / own.slot_count)
        slot_count = own.slot_count
    mean = {name: round(float(np.abs(own).mean()), 4) for name, own in errors.items()}
    return {
        "ope_relative_error": mean["ips"],
        "ope_relative_error_snips": mean["snips"],
        "ope_relative_error_dr": mean["dr"],
        "ope_relative_error_worst": _worst(errors),
        "ope_bias": {name: round(float(np.mean(own)), 4) for name, own in errors.items()},
        "ope_relative_error_without_depth": mean["ips_without_depth"],
        "ope_relative_error_of_the_log_as_it_is": mean["log_as_it_is"],
        "ope_interval_coverage": {name: covered[name] / runs for name in _ESTIMATORS},
        "ope_effective_share": round(float(np.mean(shares)), 4),
        "ope_slots": slot_count,
        "ope_exploration": _LOGGED.exploration,
        "ope_runs": runs,
    }


def release_replays(rng: np.random.Generator, runs: int, count: int) -> dict[str, Any]:
    """The same of another release."""
    errors: dict[str, list[float]] = {name: [] for name in (*_ESTIMATORS, "log_as_it_is")}
    covered, found = Counter[str](), []
    for _ in progress(runs, "replay of a release"):
        near = Near.draw(rng, count)
        truth = near.earned()
        own = replay_release(*near.log(rng, _VIDEO_EXPLORATION))
        _judge(own.replay, truth, errors, covered)
        errors["log_as_it_is"].append(own.replay.logged.value / truth - 1)
        share = own.replay.effective_slot_count / own.replay.slot_count
        found.append((own.support, own.differing_share, share, own.replay.max_weight))
    mean = {name: round(float(np.abs(own).mean()), 4) for name, own in errors.items()}
    support, differing, share, weight = np.mean(found, axis=0).round(4).tolist()
    return {
        "ope_release_relative_error": mean["ips"],
        "ope_release_relative_error_snips": mean["snips"],
        "ope_release_relative_error_dr": mean["dr"],
        "ope_release_relative_error_worst": _worst(errors),
        "ope_release_bias": {name: round(float(np.mean(own)), 4) for name, own in errors.items()},
        "ope_release_relative_error_of_the_log_as_it_is": mean["log_as_it_is"],
        "ope_release_interval_coverage": {name: covered[name] / runs for name in _ESTIMATORS},
        "ope_release_support": support,
        "ope_release_differing_share": differing,
        "ope_release_effective_share": share,
        "ope_release_max_weight": weight,
        "ope_release_slots": own.replay.slot_count,
        "ope_release_video_exploration": _VIDEO_EXPLORATION,
        "ope_release_runs": runs,
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
