"""How far a command is: a bar on a terminal, else a line now and then."""

import io

import pytest

from keek.cli.progress import Progress, Share, duration, size


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_that_notes_do_not_run_into(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    clock, terminal = Clock(), Terminal()
    with Progress(400, "rows", stream=terminal, clock=clock) as progress:
        clock.now = 10.0
        progress.advance(100)
        bar = "[#####...............]  25 %, 100 rows of 400 rows, 10 rows/s, 0:30 left"
        assert terminal.getvalue() == "\r" + bar.ljust(99)
        progress.note("FILE:1: bad")
        assert terminal.getvalue().endswith("\r" + " " * 99 + "\r")
        clock.now = 10.05
        progress.advance(1)
    assert terminal.getvalue().count("rows of") == 1
    assert capsys.readouterr().err == "FILE:1: bad\n"


def test_the_bar_is_cleared_at_the_end_and_fits_into_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    clock, terminal = Clock(), Terminal()
    with Progress(100, "B", stream=terminal, clock=clock) as progress:
        clock.now = 1.0
        progress.advance(100)
    shown, cleared = terminal.getvalue()[:20], terminal.getvalue()[20:]
    assert shown == "\r[##################"
    assert cleared == "\r" + " " * 19 + "\r"


def test_what_is_no_terminal_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress(3_000_000, "B", clock=clock) as progress:
        for _ in range(30):
            clock.now += 1
            progress.advance(100_000)
    assert capsys.readouterr().err == (
        " 50 %, 1.5 MB of 3.0 MB, 100.0 kB/s, 0:15 left\n100 %, 3.0 MB of 3.0 MB, 100.0 kB/s\n"
    )


def test_what_was_done_before_counts_as_done_and_not_as_fast(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress(200, "lines", clock=clock)
    progress.skip(100)
    clock.now = 20.0
    progress.advance(20)
    assert capsys.readouterr().err == " 60 %, 120 lines of 200 lines, 1 lines/s, 1:20 left\n"


def test_an_unknown_total_gives_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress(0, "lines", clock=clock)
    clock.now = 20.0
    progress.advance(1200)
    assert capsys.readouterr().err == "1,200 lines, 60 lines/s\n"


def test_an_upload_that_is_sent_again_in_part_takes_that_back(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = Progress(100, "B", clock=clock)
    share = Share(progress)
    for sent in (0, 40, 80, 20, 50):
        share.sent(sent, 100)
    clock.now = 15.0
    share.sent(60, 100)
    assert capsys.readouterr().err.startswith(" 60 %, 60 B of 100 B")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e9, "2.5 GB"), (3e18, "3000.0 PB")]
)
def test_sizes_are_for_people(count: float, text: str) -> None:
    assert size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05")])
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
