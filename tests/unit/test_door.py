"""The door: shares between priorities, what is too late, and what the refused are told."""

import asyncio
from contextlib import ExitStack

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from keek_server.errors import OverloadedError, TooLateError
from keek_server.rpc.door import PRIORITIES, Door
from keek_server.rpc.limits import GradientLimit
from keek_server.rpc.server import SERVICES
from keek_server.rpc.status import DETAILS_KEY

FEED = "/keek.v1.FeedService/ListFeed"
SEARCH = "/keek.v1.SearchService/ListSimilarVideos"
INTERACTION = "/keek.v1.InteractionService/RecordInteraction"
HEALTH = "/grpc.health.v1.Health/Check"


class Clock:
    """Says what time it is made to be."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def door_for(calls: float, clock: Clock | None = None) -> Door:
    return Door(GradientLimit(minimum=calls, maximum=calls, initial=calls), clock=clock or Clock())


def fill(door: Door, method: str, stack: ExitStack) -> int:
    """How many calls of a method are let in, which then stay."""
    count = 0
    while not door.is_full(method):
        stack.enter_context(door.inside(method, None))
        count += 1
    with pytest.raises(OverloadedError), door.inside(method, None):
        pytest.fail("it was let in")
    return count


@pytest.mark.parametrize(("limit", "searches", "feeds"), [(20, 10, 20), (4, 2, 4), (3, 2, 3)])
def test_searches_are_shed_first_then_feeds_and_interactions_last(
    limit: int, searches: int, feeds: int
) -> None:
    door = door_for(limit)
    with ExitStack() as stack:
        assert fill(door, SEARCH, stack) == searches
        assert fill(door, FEED, stack) == feeds - searches
        assert fill(door, INTERACTION, stack) == limit == door.recording
        assert not door.is_full(HEALTH)
        with door.inside(HEALTH, None):
            assert door.in_flight == limit
    assert door.in_flight == door.recording == 0


def test_every_method_with_a_priority_exists() -> None:
    assert {method.split("/")[1] for method in PRIORITIES} <= set(SERVICES)


def test_a_further_page_of_a_stream_is_counted_and_not_refused() -> None:
    door = door_for(4)
    with ExitStack() as stack:
        fill(door, FEED, stack)
        with door.inside(FEED, None, begun=True):
            assert door.in_flight == 5


def test_a_place_is_given_back_whatever_happens() -> None:
    door = door_for(4)
    for error in (RuntimeError, asyncio.CancelledError):
        for method in (FEED, INTERACTION):
            with pytest.raises(error), door.inside(method, None):
                raise error
    assert door.in_flight == door.recording == 0


def learn(door: Door, clock: Clock, seconds: float) -> None:
    for _ in range(100):
        with door.inside(FEED, None):
            clock.now += seconds


def test_a_call_that_cannot_be_answered_in_time_is_not_begun() -> None:
    clock = Clock()
    door = door_for(20, clock)
    with door.inside(FEED, 0.001):
        pass  # nothing is known yet
    learn(door, clock, 0.1)
    with pytest.raises(TooLateError, match="50 ms are left"), door.inside(FEED, 0.05):
        pytest.fail("it was begun")
    with door.inside(FEED, 0.2), door.inside(SEARCH, 0.05):
        assert door.in_flight == 2
    clock.now += 5.0
    with door.inside(FEED, 0.05):
        assert door.in_flight == 1  # what was known is too old


def give_up(door: Door, clock: Clock, after_s: float) -> None:
    with door.inside(FEED, None):
        clock.now += after_s
        raise asyncio.CancelledError


def test_a_call_that_ran_out_of_time_counts_as_slow_and_one_that_was_given_up_does_not() -> None:
    clock = Clock()
    limit = GradientLimit(minimum=3, maximum=20, initial=20)
    door = Door(limit, clock=clock)
    learn(door, clock, 0.1)
    for lasted_s, known_s in ((0.01, 0.1), (0.3, 0.3)):
        for _ in range(11):
            with pytest.raises(asyncio.CancelledError):
                give_up(door, clock, lasted_s)
        assert limit.typical_s(FEED, clock.now) == pytest.approx(known_s)


def retry_s(door: Door, method: str) -> float:
    _, message, trailers = door.refusal(method)
    details = Status.FromString(dict(trailers)[DETAILS_KEY]).details
    info = RetryInfo()
    assert any(detail.Unpack(info) for detail in details)
    assert "RetryInfo" in message
    return info.retry_delay.ToTimedelta().total_seconds()


def test_the_more_are_refused_the_later_they_are_told_to_come_back() -> None:
    clock = Clock()
    door = door_for(4, clock)
    learn(door, clock, 0.1)
    assert retry_s(door, FEED) == pytest.approx(0.1)
    for _ in range(79):
        door.refusal(FEED)
    clock.now += 0.6
    # 80 came in vain; four at a time take about 0.1 s each.
    assert retry_s(door, FEED) == pytest.approx(2.0, rel=0.1)
    for _ in range(5000):
        door.refusal(FEED)
    clock.now += 0.6
    learn(door, clock, 0.1)
    assert retry_s(door, FEED) == 5.0
