"""When an arm has to stop, and when it is in order."""

import math
from dataclasses import replace

import numpy as np
import pytest

from keek_server.experiments.guardrails import Bounds, FeedHealth, Verdict, judge


def healthy(rng: np.random.Generator, users: int, arm_count: int = 2) -> FeedHealth:
    """Five feeds a user, as good in each arm."""
    n = 5 * users
    return FeedHealth(
        users=np.repeat(np.arange(users), 5),
        arms=np.repeat(rng.integers(arm_count, size=users), 5).astype(np.int16),
        latencies_ms=rng.lognormal(1.5, 0.5, n).astype(np.float32),
        asked=np.full(n, 10),
        served=np.full(n, 10),
        is_degraded=rng.random(n) < 0.001,
    )


def test_arms_as_good_as_the_control_are_in_order_when_there_are_enough_users() -> None:
    (own,) = judge(healthy(np.random.default_rng(1), 20_000), 2)
    assert (own.arm, own.verdict, own.reason) == (1, Verdict.OK, "all guardrails are within their bounds")
    assert [guardrail.name for guardrail in own.guardrails] == [
        "mean latency in ms",
        "slow feeds",
        "empty feeds",
        "short feeds",
        "degraded feeds",
    ]
    for guardrail in own.guardrails:
        assert guardrail.difference.low <= 0.0 <= guardrail.difference.high <= guardrail.bound


@pytest.mark.parametrize("name", ["mean latency in ms", "slow feeds", "empty", "short", "degraded"])
def test_what_is_spoilt_stops_that_arm_alone_and_says_why(name: str) -> None:
    rng = np.random.default_rng(2)
    health = healthy(rng, 6_000, arm_count=3)
    worse = health.arms == 2
    hit = worse & (rng.random(len(worse)) < 0.1)
    changed = {
        "mean latency in ms": {"latencies_ms": np.where(worse, 1.3, 1.0) * health.latencies_ms},
        # The mean stays about as it is.
        "slow feeds": {"latencies_ms": np.where(hit, 20.0, health.latencies_ms).astype(np.float32)},
        "empty": {"served": np.where(hit, 0, 10)},
        "short": {"served": np.where(hit, 9, 10)},
        "degraded": {"is_degraded": health.is_degraded | hit},
    }[name]
    bounds = Bounds(latency_relative=10.0) if name == "slow feeds" else Bounds()
    other, spoilt = judge(replace(health, **changed), 3, bounds)
    assert other.verdict is not Verdict.STOP
    assert (spoilt.arm, spoilt.verdict) == (2, Verdict.STOP)
    stopped = {own.name for own in spoilt.guardrails if own.verdict is Verdict.STOP}
    assert any(own.startswith(name) for own in stopped)
    assert name in spoilt.reason
    assert "is allowed" in spoilt.reason
    if name == "short":
        assert stopped == {"short feeds"}


def test_what_has_no_bound_is_not_watched_and_a_bound_may_be_nothing_at_all() -> None:
    health = healthy(np.random.default_rng(6), 3_000)
    bounds = Bounds(latency_relative=0.0, slow_share=None, short_share=None, degraded_share=None)
    (own,) = judge(health, 2, bounds)
    assert [guardrail.name for guardrail in own.guardrails] == ["mean latency in ms", "empty feeds"]
    assert own.guardrails[0].verdict is Verdict.UNKNOWN
    slow = replace(health, latencies_ms=np.where(health.arms == 1, 1.2, 1.0) * health.latencies_ms)
    assert judge(slow, 2, bounds)[0].verdict is Verdict.STOP
    nothing = judge(health, 2, Bounds(None, None, None, None, None))[0]
    assert (nothing.verdict, nothing.guardrails) == (Verdict.OK, ())


def test_few_users_decide_nothing_even_where_nothing_bad_was_seen() -> None:
    health = healthy(np.random.default_rng(3), 120)
    (few,) = judge(health, 2)
    assert few.verdict is Verdict.UNKNOWN
    assert "fewer than 100 users in this arm or in the control" in few.reason
    # No feed was empty; that of so few it says little is not hidden by a variance of 0.
    (own,) = judge(health, 2, Bounds(min_users=10))
    empty = own.guardrails[2]
    assert (empty.value, empty.control, empty.verdict) == (0.0, 0.0, Verdict.UNKNOWN)
    assert empty.difference.high > empty.bound
    assert own.verdict is Verdict.UNKNOWN


def test_an_arm_that_nobody_has_seen_is_unknown() -> None:
    health = healthy(np.random.default_rng(4), 300, arm_count=1)
    (own,) = judge(health, 2, Bounds(min_users=0))
    assert own.verdict is Verdict.UNKNOWN
    assert "there is nothing to compare" in own.reason
    assert math.isnan(own.guardrails[0].difference.low)
    nothing = healthy(np.random.default_rng(4), 0)
    assert [own.verdict for own in judge(nothing, 3)] == [Verdict.UNKNOWN, Verdict.UNKNOWN]


def test_looking_again_and_again_rarely_stops_a_good_arm() -> None:
    rng = np.random.default_rng(5)
    stopped = 0
    for _ in range(60):
        health = healthy(rng, 1_500)
        for users in range(150, 1_501, 150):
            seen = health.users < users
            part = FeedHealth(*(getattr(health, name)[seen] for name in FeedHealth.__dataclass_fields__))
            if judge(part, 2)[0].verdict is Verdict.STOP:
                stopped += 1
                break
    assert stopped <= 1
