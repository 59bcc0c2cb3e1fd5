"""Rows kept in memory for those who follow the log: never one that might have a gap before it."""

from keek_server.interactions import recent
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.recent import RecentRows
from keek_server.interactions.rows import LoggedInteraction


def rows(first: int, count: int) -> list[LoggedInteraction]:
    return [
        LoggedInteraction(seq, "u", "v", InteractionKind.LIKE, 1, 2, "", ())
        for seq in range(first, first + count)
    ]


def seqs(found: list[LoggedInteraction]) -> list[int]:
    return [row.seq for row in found]


def test_rows_follow_a_number_across_transactions() -> None:
    kept = RecentRows()
    kept.add(rows(1, 3))
    kept.add(rows(4, 2))
    assert seqs(kept.after(0, 10)) == [1, 2, 3, 4, 5]
    assert seqs(kept.after(2, 10)) == [3, 4, 5]
    assert seqs(kept.after(1, 2)) == [2, 3]
    assert kept.after(5, 10) == []


def test_nothing_is_said_about_what_another_server_may_have_written() -> None:
    kept = RecentRows()
    kept.add(rows(1, 2))
    kept.add(rows(5, 2))
    assert seqs(kept.after(0, 10)) == [1, 2]
    assert kept.after(2, 10) == []
    assert kept.after(3, 10) == []
    assert seqs(kept.after(4, 10)) == [5, 6]


def test_numbers_with_gaps_are_not_kept() -> None:
    kept = RecentRows()
    kept.add([rows(1, 1)[0], rows(3, 1)[0]])
    assert kept.after(0, 10) == []


def test_the_oldest_go_first() -> None:
    kept = RecentRows()
    size = recent._ROWS_KEPT // 2
    for run in range(3):
        kept.add(rows(1 + run * size, size))
    assert kept.after(0, 10) == []
    assert seqs(kept.after(size, 1)) == [size + 1]


def test_a_log_that_went_back_is_begun_again() -> None:
    kept = RecentRows()
    kept.add(rows(1, 5))
    kept.add(rows(4, 1))
    assert kept.after(0, 10) == []
    assert seqs(kept.after(3, 10)) == [4]
