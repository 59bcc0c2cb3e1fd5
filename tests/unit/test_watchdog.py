"""When a release is gone back from, and when not."""

import pytest

from keek_server.releases.fleet import Figures
from keek_server.releases.watchdog import Bounds

BOUNDS = Bounds(min_feeds=50, error_rate=0.05, empty_rate=0.05)
FINE = Figures(feed_count=1000, error_count=1)


@pytest.mark.parametrize(
    ("own", "before", "said"),
    [
        (Figures(100, error_count=10), FINE, "10 of 100 feeds without their personalised part"),
        (Figures(100, empty_count=6), FINE, "6 of 100 feeds without any personalised video"),
    ],
)
def test_what_is_worse_than_the_bound_and_than_before_is_a_fault(
    own: Figures, before: Figures, said: str
) -> None:
    assert said in BOUNDS.fault(own, before)


@pytest.mark.parametrize(
    ("own", "before"),
    [
        (Figures(49, error_count=49), FINE),
        (Figures(100, error_count=5, empty_count=5), FINE),
        # Triton is down: the one before fails alike.
        (Figures(100, error_count=90), Figures(100, error_count=80)),
        (Figures(100, empty_count=20), Figures(100, empty_count=15)),
    ],
)
def test_too_little_within_the_bound_or_no_worse_than_before_is_none(own: Figures, before: Figures) -> None:
    assert BOUNDS.fault(own, before) == ""


def test_a_bound_of_one_never_goes_back() -> None:
    never = Bounds(min_feeds=1, error_rate=1.0, empty_rate=1.0)
    assert never.fault(Figures(100, error_count=100, empty_count=100), FINE) == ""
