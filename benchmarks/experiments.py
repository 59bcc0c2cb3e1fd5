"""Experiments on simulated users of whom the truth is known: how often they conclude what is not so.

Users are heavy-tailed: the most active tenth does about 40 % of everything, and each one's taste lasts from
the time before. All of it goes through what the server reports with (`keek_server.experiments`).

- A/A experiments, looked at once at their end, and looked at after each of twenty times: users come one after
  the other with all that they do, or are all there and do more and more. With the default tau, a
  smaller and a larger one; the worst counts.
- The power to find a lift of 2 % in the like rate, and in likes by user, with and without CUPED.
- A ratio of users of 51/49 where 50/50 was meant is found, and a whole one is not.
- A split of 60/40, replayed from feeds of 70/30 with exploration, against what it really earns; beside it,
  what comes out when one takes the log as it is.
- Another release, replayed from feeds some of whose videos were drawn by chance, likewise.
- Microseconds to assign a user.

Goals: false positives in 0.04 to 0.06, with peeking at most 0.05; replay within 10 % of the truth; assignment
in at most 5 us.
"""

import argparse
import importlib
import json
import math
import random
import time
from collections import Counter
from typing import Any, Final

import numpy as np

from benchmarks.experiment_replays import progress, release_replays, replays
from benchmarks.servers import report
from benchmarks.simulated_users import Users, simulated_users
from keek_server.experiments.inference import Difference, compare, estimates, linearised, sample_ratio
from keek_server.experiments.logs import FloatArray, Int16Array
from keek_server.experiments.sequential import TAU_RELATIVE, sequential_p

_ALPHA: Final = 0.05
_LOOKS: Final = 20
_LIFT: Final = 0.02
_TAUS: Final = (TAU_RELATIVE, 0.02, 0.5)
_SRM_USERS: Final = 200_000
_SRM_SHARE: Final = 0.51
_ASSIGNED: Final = 20_000
_ROUNDS: Final = 5


def main() -> None:
    """Prints one JSON object, and writes it to benchmarks/results/experiments.json."""
    parser = argparse.ArgumentParser(description="Experiments on simulated users")
    parser.add_argument("--runs", type=int, default=4_000, help="A/A experiments (default: 4,000)")
    parser.add_argument("--users", type=int, default=10_000, help="of an A/A experiment (default: 10,000)")
    parser.add_argument("--power-runs", type=int, default=400, help="of the power (default: 400)")
    parser.add_argument("--power-users", type=int, default=50_000, help="(default: 50,000)")
    parser.add_argument("--replays", type=int, default=20, help="(default: 20)")
    parser.add_argument("--replay-users", type=int, default=10_000, help="(default: 10,000)")
    parser.add_argument("--only-replays", action="store_true", help="prints them, and writes nothing")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    random.seed(arguments.seed)  # of the mix
    sizes = arguments.replays, arguments.replay_users
    if arguments.only_replays:
        print(json.dumps({**replays(rng, *sizes), **release_replays(rng, *sizes)}))
        return
    report(
        "experiments",
        {
            **_false_positives(rng, arguments.runs, arguments.users),
            **_power(rng, arguments.power_runs, arguments.power_users),
            **_sample_ratios(rng),
            **replays(rng, *sizes),
            **release_replays(rng, *sizes),
            "assign_us": _assign_us(),
        },
    )


def _false_positives(rng: np.random.Generator, runs: int, count: int) -> dict[str, Any]:
    found: Counter[str] = Counter()
    for _ in progress(runs, "A/A"):
        users = simulated_users(rng, count, periods=_LOOKS)
        arms = _arms(rng, count)
        likes, slots = users.likes.sum(axis=1), users.slots.sum(axis=1)
        before = _before(users)
        found["once"] += _compared(arms, likes, slots).p_value < _ALPHA
        found["cuped"] += _compared(arms, likes, slots, before).p_value < _ALPHA
        ends = np.linspace(0, count, _LOOKS + 1).astype(int)[1:]
        grown = zip(np.cumsum(users.likes, axis=1).T, np.cumsum(users.slots, axis=1).T, strict=True)
        looks = {
            "come": [_compared(arms[:end], likes[:end], slots[:end], before[:end]) for end in ends],
            "grow": [_compared(arms, *sums, before) for sums in grown],
        }
        for way, compared in looks.items():
            found[f"{way}_once"] += min(own.p_value for own in compared) < _ALPHA
            for tau in _TAUS:
                found[f"{way}_tau_{tau:g}"] += min(sequential_p(own, tau) for own in compared) < _ALPHA
    rates = {name: round(found[name] / runs, 4) for name in sorted(found)}
    return {
        "aa_false_positive_rate": rates.pop("once"),
        "aa_false_positive_rate_cuped": rates.pop("cuped"),
        "aa_peeking_false_positive_rate": max(own for name, own in rates.items() if "tau" in name),
        # Users come, or grow in what they do; p-values of one look, or always-valid ones by their tau.
        "aa_peeking": rates,
        "aa_looks": _LOOKS,
        "aa_runs": runs,
        "aa_standard_error": round(math.sqrt(_ALPHA * (1 - _ALPHA) / runs), 4),
        "aa_users": count,
    }


def _power(rng: np.random.Generator, runs: int, count: int) -> dict[str, Any]:
    names = ("like_rate", "like_rate_cuped", "likes_per_user", "likes_per_user_cuped", "always_valid_cuped")
    found = dict.fromkeys(names, 0)
    variances = dict.fromkeys(names, 0.0)
    for _ in progress(runs, "power"):
        arms = _arms(rng, count)
        users = simulated_users(rng, count, lifts=_LIFT * arms)
        likes, slots, ones = users.likes[:, 0], users.slots[:, 0], np.ones(count)
        before, counted = _before(users), linearised(users.likes_before, ones)[:, None]
        compared = {
            "like_rate": _compared(arms, likes, slots),
            "like_rate_cuped": _compared(arms, likes, slots, before),
            "likes_per_user": _compared(arms, likes, ones),
            "likes_per_user_cuped": _compared(arms, likes, ones, counted),
        }
        for name, own in compared.items():
            found[name] += own.p_value < _ALPHA
            variances[name] += own.variance / runs
        found["always_valid_cuped"] += sequential_p(compared["like_rate_cuped"]) < _ALPHA
    power = {name: round(times / runs, 3) for name, times in found.items()}
    return {
        "power_at_2_percent": power["like_rate_cuped"],
        "power_at_2_percent_without_cuped": power["like_rate"],
        "power_at_2_percent_always_valid": power["always_valid_cuped"],
        "power_at_2_percent_likes_per_user": power["likes_per_user_cuped"],
        "power_at_2_percent_likes_per_user_without_cuped": power["likes_per_user"],
        "power_users": count,
        "power_runs": runs,
        "cuped_variance_reduction": round(1 - variances["like_rate_cuped"] / variances["like_rate"], 3),
        "cuped_variance_reduction_likes_per_user": round(
            1 - variances["likes_per_user_cuped"] / variances["likes_per_user"], 3
        ),
    }


def _sample_ratios(rng: np.random.Generator, runs: int = 1_000) -> dict[str, Any]:
    """Whether a broken ratio is found and a whole one is not, nearly always."""
    broken, whole = (
        sum(sample_ratio([own, _SRM_USERS - own], [1, 1]).is_broken for own in drawn.tolist()) / runs
        for drawn in (rng.binomial(_SRM_USERS, share, runs) for share in (_SRM_SHARE, 0.5))
    )
    return {
        "srm_detected": broken >= 0.99 and whole <= 0.005,
        "srm_found_rate": broken,
        "srm_false_alarm_rate": whole,
        "srm_users": _SRM_USERS,
    }


def _assign_us() -> float | None:
    """Microseconds an assignment, the least of some rounds; None before there is any."""
    try:
        assignment: Any = importlib.import_module("keek_server.experiments.assignment")
        definitions: Any = importlib.import_module("keek_server.experiments.definitions")
    except ModuleNotFoundError:
        return None
    arms = [{"name": "control"}, {"name": "half", "parameters": {"personalised_share": 0.5}}]
    definition = definitions.ExperimentDefinition.of(
        {"experiment_id": "mix", "traffic_percent": 100.0, "arms": arms}
    )
    plan = assignment.Plan.of([assignment.Running(definition, ((0, assignment.BUCKETS),))])
    users = [f"user-{number}" for number in range(_ASSIGNED)]
    rounds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for user in users:
            assignment.assign(plan, user)
        rounds.append((time.perf_counter() - started) / len(users))
    return round(min(rounds) * 1e6, 3)


def _arms(rng: np.random.Generator, count: int) -> Int16Array:
    return rng.integers(2, size=count).astype(np.int16)


def _before(users: Users) -> FloatArray:
    return linearised(users.likes_before, users.slots_before)[:, None]


def _compared(
    arms: Int16Array, numerators: Any, denominators: Any, covariates: FloatArray | None = None
) -> Difference:
    control, treatment = estimates(arms, numerators, denominators, 2, covariates)
    return compare(treatment, control)


if __name__ == "__main__":
    main()
