"""What an import remembers: ranges of lines, files and counts, after any kind of end."""

import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keek.cli.importing.journal import Counts, ImportRunningError, Journal, Ranges
from keek.cli.importing.parallel import run_parallel

IDENTITY = {"target": "localhost:50051", "size_bytes": 3}

numbers = st.sets(st.integers(1, 60))


# -- ranges ---------------------------------------------------------------------------------------
@given(numbers, st.randoms())
def test_ranges_hold_what_was_put_in_and_nothing_else(chosen: set[int], random: object) -> None:
    ranges = Ranges((n, n) for n in chosen)
    assert [n for n in range(70) if n in ranges] == sorted(chosen)
    assert len(ranges) == len(chosen)
    assert Ranges(ranges)._firsts == ranges._firsts
    # Neighbours are one range.
    assert all(last + 1 < first for (_, last), (first, _) in zip(ranges, list(ranges)[1:], strict=False))


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 20)), max_size=8))
def test_ranges_that_overlap_are_joined(spans: list[tuple[int, int]]) -> None:
    ranges = Ranges((first, first + length) for first, length in spans)
    expected = {n for first, length in spans for n in range(first, first + length + 1)}
    assert {n for first, last in ranges for n in range(first, last + 1)} == expected
    assert len(ranges) == len(expected)


@given(numbers, st.integers(1, 60), st.integers(0, 60))
def test_gaps_are_exactly_what_is_missing(chosen: set[int], first: int, length: int) -> None:
    gaps = list(Ranges((n, n) for n in chosen).gaps(first, first + length))
    missing = [n for start, end in gaps for n in range(start, end + 1)]
    assert missing == [n for n in range(first, first + length + 1) if n not in chosen]
    assert all(start <= end for start, end in gaps)


# -- the journal ----------------------------------------------------------------------------------
@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "videos.csv.keek-import"


def _filled(path: Path) -> None:
    with Journal(path, IDENTITY) as journal:
        journal.lines_done([2, 3, 4], Counts(created_count=3))
        journal.lines_done([9, 7], Counts(updated_count=1, refused_count=1))
        journal.file_done(("a.mp4", 10, 123), Counts(uploaded_count=1))


def test_everything_that_was_acknowledged_is_known_the_next_time(path: Path) -> None:
    _filled(path)
    with Journal(path, IDENTITY) as journal:
        assert journal.is_resumed
        assert list(journal.lines) == [(2, 4), (7, 7), (9, 9)]
        assert journal.files == {("a.mp4", 10, 123)}
        assert journal.counts == Counts(created_count=3, updated_count=1, uploaded_count=1, refused_count=1)


@pytest.mark.parametrize("restart", [False, True])
def test_the_state_of_another_import_or_of_a_restart_is_forgotten(path: Path, restart: bool) -> None:
    _filled(path)
    other = IDENTITY if restart else {**IDENTITY, "size_bytes": 4}
    with Journal(path, other, restart=restart) as journal:
        assert (journal.is_resumed, journal.was_stale) == (False, not restart)
        assert (len(journal.lines), journal.files) == (0, set())
        journal.lines_done([5], Counts(created_count=1))
    with Journal(path, other) as journal:
        assert list(journal.lines) == [(5, 5)]


def test_a_new_journal_is_neither_resumed_nor_stale(path: Path) -> None:
    with Journal(path, IDENTITY) as journal:
        assert (journal.is_resumed, journal.was_stale) == (False, False)


def test_a_file_that_ends_anywhere_gives_whole_entries_alone_and_can_be_gone_on_with(path: Path) -> None:
    _filled(path)
    content = path.read_bytes()
    header = content.index(b"\n") + 1
    for length in range(header, len(content) + 1):
        path.write_bytes(content[:length])
        whole = content[header:length].count(b"\n")
        with Journal(path, IDENTITY) as journal:
            assert len(journal.lines) == (0, 3, 5, 5)[whole]
            assert len(journal.files) == (whole == 3)
            journal.lines_done([100], Counts(created_count=1))
        with Journal(path, IDENTITY) as journal:
            assert 100 in journal.lines
            assert len(journal.lines) == (0, 3, 5, 5)[whole] + 1


@pytest.mark.parametrize(
    "damage",
    [
        b"\0" * 40,
        b"null",
        b"7",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"counts": {}}',
        b'{"lines": [[5, 6]]}',
        b'{"lines": [[5, 6]], "counts": null}',
        b'{"lines": [[5, 6]], "counts": {"stolen_count": 1}}',
        b'{"lines": [[5, 6]], "counts": {"created_count": "1"}}',
        b'{"lines": [[5, 6]], "counts": {"created_count": -1}}',
        b'{"lines": [[6, 5]], "counts": {}}',
        b'{"lines": [[5, 1e9]], "counts": {}}',
        b'{"lines": [[5, 99999999999999999999999]], "counts": {}}',
        b'{"lines": [5], "counts": {}}',
        b'{"file": ["a.mp4", 1], "counts": {}}',
        b'{"file": [["a"], 1, 2], "counts": {}}',
        b'{"lines": [[5, 5]], "cou{"lines": [[6, 6]], "counts": {}}',
        b'{"lines": [[5, 5]], "counts": {}}{"lines": [[6, 6]], "counts": {}}',
    ],
)
def test_a_damaged_line_and_what_is_behind_it_count_as_never_written(path: Path, damage: bytes) -> None:
    _filled(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], damage + b"\n", *lines[3:]]))
    with Journal(path, IDENTITY) as journal:
        assert (journal.is_resumed, journal.was_damaged) == (True, True)
        assert list(journal.lines) == [(2, 4), (7, 7), (9, 9)]
        assert (journal.files, journal.counts.uploaded_count) == (set(), 0)
        journal.lines_done([100], Counts(created_count=1))
    with Journal(path, IDENTITY) as journal:
        assert not journal.was_damaged
        assert list(journal.lines) == [(2, 4), (7, 7), (9, 9), (100, 100)]
        assert journal.counts == Counts(created_count=4, updated_count=1, refused_count=1)


def test_a_journal_that_is_open_is_nobody_elses_and_free_when_it_is_closed_or_removed(path: Path) -> None:
    with Journal(path, IDENTITY) as journal:
        journal.lines_done([2], Counts(created_count=1))
        for restart in (False, True):
            with pytest.raises(ImportRunningError, match="runs already"):
                Journal(path, IDENTITY, restart=restart)
        journal.lines_done([3], Counts(created_count=1))
    with Journal(path, IDENTITY) as journal:
        assert list(journal.lines) == [(2, 3)]
        journal.remove()
        with Journal(path, IDENTITY) as next_one:
            next_one.lines_done([9], Counts())
    with Journal(path, IDENTITY) as journal:
        assert list(journal.lines) == [(9, 9)]


def test_a_header_that_was_cut_short_is_no_state(path: Path) -> None:
    _filled(path)
    path.write_bytes(path.read_bytes()[:5])
    with Journal(path, IDENTITY) as journal:
        assert not journal.is_resumed
        assert len(journal.lines) == 0


def test_threads_write_whole_lines(path: Path) -> None:
    with Journal(path, IDENTITY) as journal:
        threads = [
            threading.Thread(
                target=lambda start: [
                    journal.lines_done([n], Counts(created_count=1)) for n in range(start, start + 200)
                ],
                args=(1000 * number,),
            )
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Journal(path, IDENTITY) as journal:
        assert len(journal.lines) == 1600
        assert journal.counts.created_count == 1600


def test_an_acknowledgement_after_the_end_is_not_an_error(path: Path) -> None:
    with Journal(path, IDENTITY) as journal:
        pass
    journal.lines_done([1], Counts())
    journal.remove()
    assert not path.exists()
    journal.remove()


def test_counts_are_summed_by_name() -> None:
    total = Counts(created_count=1, refused_count=2)
    total.add(Counts(created_count=10, unchanged_count=5))
    assert asdict(total) == {
        "created_count": 11,
        "updated_count": 0,
        "uploaded_count": 0,
        "unchanged_count": 5,
        "unverified_count": 0,
        "refused_count": 2,
    }


# -- running side by side -------------------------------------------------------------------------
def test_tasks_are_read_no_further_ahead_than_needed() -> None:
    done: list[int] = []
    ahead = 0

    def tasks() -> object:
        nonlocal ahead
        for number in range(50):
            ahead = max(ahead, number - len(done))
            yield lambda number=number: done.append(number)

    run_parallel(tasks(), 2, lambda: None)  # type: ignore[arg-type]
    assert sorted(done) == list(range(50))
    assert ahead <= 4


def test_the_first_error_ends_it_and_what_runs_may_end() -> None:
    begun, ended = threading.Event(), []

    def slow() -> None:
        begun.set()
        threading.Event().wait(0.2)
        ended.append("slow")

    def failing() -> None:
        begun.wait(10)
        raise LookupError("first")

    def never() -> None:
        ended.append("never")

    with pytest.raises(LookupError, match="first"):
        run_parallel([slow, failing, *[never] * 50], 2, lambda: ended.append("abandoned"))
    assert "slow" in ended
    assert "abandoned" not in ended
    assert ended.count("never") < 50


def test_an_interruption_abandons_what_runs() -> None:
    abandoned = threading.Event()

    def tasks() -> object:
        yield lambda: abandoned.wait(30)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_parallel(tasks(), 2, abandoned.set)  # type: ignore[arg-type]
    assert abandoned.is_set()
