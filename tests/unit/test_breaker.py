"""The breaker: when it opens, whom it lets through, and what closes it."""

import asyncio
import gc
import logging
import time
from contextlib import suppress

import pytest
from patience import eventually

from keek_server import metrics
from keek_server.breaker import FAILURES, RETRY_S, Breaker
from keek_server.errors import UnavailableError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


NAME = "Redis of these tests"
"""Breakers of other tests' servers, which may still be there, write to the same log."""


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(NAME, "test", deadline_s=0.1, clock=clock)


async def nothing() -> None:
    """A call that is not made."""


def check(breaker: Breaker) -> None:
    breaker.check(nothing)


def fail(breaker: Breaker, clock: Clock, *, takes_s: float = 0.1) -> None:
    with suppress(UnavailableError), breaker.asking():
        clock.now += takes_s
        raise UnavailableError("took longer than 100 ms")


def succeed(breaker: Breaker) -> None:
    with breaker.asking():
        pass


def lets_through(breaker: Breaker) -> bool:
    try:
        check(breaker)
    except UnavailableError:
        return False
    return True


def open_count() -> float:
    gc.collect()  # those of other tests
    return float(metrics.breakers_open.labels("test")._value.get())


async def test_failures_in_a_row_open_it_and_the_reason_is_told(breaker: Breaker, clock: Clock) -> None:
    for _ in range(FAILURES - 1):
        fail(breaker, clock)
        assert not breaker.is_open
        assert lets_through(breaker)
    fail(breaker, clock)
    assert breaker.is_open
    with pytest.raises(UnavailableError, match=f"{NAME} is left alone: took longer than 100 ms"):
        check(breaker)


def test_a_failure_between_answers_opens_nothing(breaker: Breaker, clock: Clock) -> None:
    for _ in range(10 * FAILURES):
        fail(breaker, clock)
        succeed(breaker)
    assert not breaker.is_open


def test_calls_that_one_pause_made_late_are_one_failure(breaker: Breaker, clock: Clock) -> None:
    def call() -> None:
        with suppress(UnavailableError), breaker.asking():
            if len(breaker._began) < 10 * FAILURES:
                call()  # another one begins meanwhile
            clock.now += 0.001
            raise UnavailableError("took longer than 100 ms")

    call()
    assert not breaker.is_open


async def test_while_open_nobody_is_let_through_and_it_closes_by_itself(
    clock: Clock,
) -> None:
    breaker = Breaker("Redis", "test", deadline_s=0.1, retry_s=0.01, clock=clock)
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        with breaker.asking():
            if calls == 2:
                raise ValueError("a fault of ours")
            if calls <= 3:
                raise UnavailableError("still late")

    for _ in range(FAILURES):
        breaker.check(call)
        fail(breaker, clock)
    for _ in range(5):
        with pytest.raises(UnavailableError, match="is left alone"):
            breaker.check(call)
    async with asyncio.timeout(10):
        while breaker.is_open:  # nobody comes by
            await asyncio.sleep(0.001)
    assert calls == 4
    assert lets_through(breaker)
    await asyncio.sleep(0.05)
    assert calls == 4


async def test_it_opens_again_and_finds_out_again(clock: Clock) -> None:
    breaker = Breaker("Redis", "test", deadline_s=0.1, retry_s=0.01, clock=clock)

    async def call() -> None:
        succeed(breaker)

    for _ in range(3):
        for _ in range(FAILURES):
            breaker.check(call)
            fail(breaker, clock)
        assert breaker.is_open
        async with asyncio.timeout(10):
            while breaker.is_open:
                await asyncio.sleep(0.001)


async def test_whoever_is_cancelled_or_makes_a_mistake_says_nothing(breaker: Breaker, clock: Clock) -> None:
    for error in (asyncio.CancelledError, ValueError):
        for _ in range(3 * FAILURES):
            with suppress(error), breaker.asking():
                raise error
    assert not breaker.is_open
    fail(breaker, clock)
    for _ in range(FAILURES - 1):
        with suppress(ValueError), breaker.asking():
            raise ValueError
        fail(breaker, clock)
    assert breaker.is_open


def test_nobody_waits_beside_a_call_that_takes_long(breaker: Breaker, clock: Clock) -> None:
    with breaker.asking():
        clock.now += 0.02
        assert lets_through(breaker)
        clock.now += 0.03
        with pytest.raises(UnavailableError, match=f"{NAME} has not answered for 50 ms"):
            check(breaker)
    assert lets_through(breaker)
    assert not breaker.is_open


def test_after_a_failure_one_call_at_a_time_finds_out(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, clock)
    check(breaker)
    with breaker.asking(), pytest.raises(UnavailableError, match="asked once more: took longer"):
        check(breaker)
    assert lets_through(breaker)


async def test_opening_and_closing_are_logged_once_and_counted(
    breaker: Breaker, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert open_count() == 0
    for _ in range(FAILURES):
        fail(breaker, clock)
    assert open_count() == 1
    for _ in range(5):
        clock.now += RETRY_S + 0.001
        fail(breaker, clock)
    assert open_count() == 1
    clock.now += RETRY_S + 0.001
    succeed(breaker)
    succeed(breaker)
    assert open_count() == 0
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if message.startswith(NAME)] == [
        f"{NAME} is not asked any more, but every 0.5 s: took longer than 100 ms",
        f"{NAME} answers again",
    ]


async def test_one_that_is_gone_while_it_is_open_is_not_counted_any_more(clock: Clock) -> None:
    gone = Breaker("Triton", "test", deadline_s=0.1, clock=clock)
    for _ in range(FAILURES):
        fail(gone, clock)
    assert open_count() == 1
    del gone
    assert open_count() == 0


async def test_one_that_is_retired_is_neither_counted_nor_finds_out(clock: Clock) -> None:
    retired = Breaker("Triton", "test", deadline_s=0.1, clock=clock, retry_s=0.01)
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        with retired.asking():
            raise UnavailableError("nothing there")

    for _ in range(FAILURES):
        fail(retired, clock)
    with pytest.raises(UnavailableError):
        retired.check(call)
    await eventually(lambda: calls > 0)
    assert open_count() == 1
    retired.retire()
    asked = calls
    # Whoever got hold of it before goes on being refused.
    fail(retired, clock)
    assert not lets_through(retired)
    await asyncio.sleep(0.1)
    assert calls == asked
    assert open_count() == 0


def test_it_costs_microseconds() -> None:
    breaker = Breaker("Redis", "test", deadline_s=0.1)
    calls = 10_000
    # This thread's alone: those of other tests' servers compute meanwhile.
    began = time.thread_time()
    for _ in range(calls):
        check(breaker)
        succeed(breaker)
    assert (time.thread_time() - began) / calls < 50e-6
