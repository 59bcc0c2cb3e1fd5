"""What the benchmark of faults makes of the feeds it saw."""

import pytest
from benchmarks.fault_load import Feed, Tally
from benchmarks.faults import Window, are_whole, result_of

WINDOW = Window("redis killed", 10.0, 20.0, 25.0)


def feeds(start_s: float, end_s: float, *, named: tuple[str, ...] = (), error: str = "") -> list[Feed]:
    """A hundred a second."""
    count = round((end_s - start_s) * 100)
    return [Feed(start_s + i / 100, 0.02, error, items=0 if error else 10, named=named) for i in range(count)]


@pytest.fixture
def tally() -> Tally:
    """A fault that is over 2 s after it ended."""
    named = ("trending without Redis",)
    seen = [*feeds(5, 10), *feeds(10, 22, named=named), *feeds(22, 25)]
    return Tally(seen, acknowledged={"a", "b"})


def test_feeds_that_say_what_is_missing_are_good_and_are_counted(tally: Tally) -> None:
    result = result_of(tally, [WINDOW], lost=0)
    assert result["passed"]
    assert (result["feeds"], result["ok_within_deadline"]) == (2000, 2000)
    assert (result["errors"], result["empty"]) == (0, 0)
    fault = result["faults"]["redis killed"]
    assert fault["named"] == {"trending without Redis": 1000}
    assert fault["whole_again_s"] == 2.0
    assert fault["after"]["feeds"] == 500


@pytest.mark.parametrize(
    ("bad", "counted"),
    [
        (Feed(12.0, 0.5, "DeadlineExceededError"), "errors"),
        (Feed(12.0, 0.02, items=0), "empty"),
        (Feed(12.0, 0.02, items=10, repeated=True), None),
    ],
)
def test_each_kind_of_bad_feed_counts_against_the_goal(tally: Tally, bad: Feed, counted: str | None) -> None:
    tally.feeds += [bad] * 3
    result = result_of(tally, [WINDOW], lost=0)
    assert result["ok_within_deadline"] == 2000
    assert result["feeds"] == 2003
    if counted is not None:
        assert result[counted] == 3
    assert not result["passed"]


def test_one_empty_feed_or_lost_interaction_fails_however_many_are_good(tally: Tally) -> None:
    assert not result_of(tally, [WINDOW], lost=1)["passed"]
    tally.feeds.append(Feed(12.0, 0.02, items=0))
    result = result_of(tally, [WINDOW], lost=0)
    assert result["good_share"] > 0.999
    assert not result["passed"]


def test_nothing_measured_has_not_passed() -> None:
    assert not result_of(Tally(), [], lost=0)["passed"]


def test_feeds_are_whole_when_none_of_a_second_lacked_anything(tally: Tally) -> None:
    assert not are_whole(tally, 20.0, 20.5)
    assert not are_whole(tally, 20.0, 22.5)
    assert are_whole(tally, 20.0, 23.2)
    assert not are_whole(tally, 23.0, 23.2)
