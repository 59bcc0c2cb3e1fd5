"""The overload benchmark's judgement of a recovery."""

import math

from benchmarks.open_loop import Call, Run
from benchmarks.overload import recovers_s

OVERLOAD = Run([Call(99.0, 0.01, "OK"), Call(100.0, 0.5, "ResourceExhausted")], 20.0)


def recovery(bad: dict[float, Call]) -> Run:
    """Ten good seconds, in which some calls are others."""
    calls = [bad.get(step / 10, Call(100.05 + step / 10, 0.01, "OK")) for step in range(100)]
    return Run(calls, 10.0)


def test_where_all_is_well_at_once_nothing_had_to_recover() -> None:
    assert recovers_s(OVERLOAD, recovery({}), 20.0) == 0.0


def test_it_has_recovered_after_the_last_slow_or_refused_call_before_two_good_seconds() -> None:
    slow = {0.3: Call(100.35, 0.03, "OK")}
    assert recovers_s(OVERLOAD, recovery(slow), 20.0) == 0.5
    refused = {1.2: Call(101.25, 0.001, "ResourceExhausted")}
    assert recovers_s(OVERLOAD, recovery({**slow, **refused}), 20.0) == 1.5


def test_without_two_good_seconds_it_never_has() -> None:
    refused = {float(second): Call(100.05 + second, 0.001, "ResourceExhausted") for second in range(10)}
    assert recovers_s(OVERLOAD, recovery(refused), 20.0) == math.inf
