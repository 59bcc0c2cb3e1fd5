"""How far a long command is, on stderr: a bar on a terminal, else a line now and then."""

import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Final, TextIO

from keek.cli.output import note

_BAR_INTERVAL_S: Final = 0.1
_LINE_INTERVAL_S: Final = 15.0
_BAR_WIDTH: Final = 20
_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


class Progress(AbstractContextManager["Progress"]):
    """Counts towards a total; threads may share it."""

    def __init__(
        self,
        total: int,
        unit: str,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            total: What is done in the end; 0 when that is not known.
            unit: `B` for bytes, or a word for what is counted.
        """
        self._total: Final = total
        self._unit: Final = unit
        self._stream: Final = stream or sys.stderr
        self._is_bar: Final = self._stream.isatty()
        self._interval_s: Final = _BAR_INTERVAL_S if self._is_bar else _LINE_INTERVAL_S
        self._clock: Final = clock
        self._start = self._shown = clock()
        self._done = self._skipped = 0
        self._is_drawn = False
        self._lock: Final = threading.Lock()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._clear()

    def skip(self, count: int) -> None:
        """What was done before, and says nothing about how fast it goes now."""
        with self._lock:
            self._done += count
            self._skipped += count

    def advance(self, count: int) -> None:
        """So much more is done; less, when it is negative."""
        with self._lock:
            self._done += count
            if (now := self._clock()) - self._shown >= self._interval_s:
                self._shown = now
                self._show(now)

    def note(self, text: str) -> None:
        """A line on stderr that the bar does not run into."""
        with self._lock:
            self._clear()
            note(text)

    def _show(self, now: float) -> None:
        if not self._is_bar:
            note(self._text(now))
            return
        bar = ""
        if self._total:
            full = min(_BAR_WIDTH, _BAR_WIDTH * self._done // self._total)
            bar = f"[{'#' * full}{'.' * (_BAR_WIDTH - full)}] "
        width = shutil.get_terminal_size().columns - 1
        self._stream.write("\r" + (bar + self._text(now))[:width].ljust(width))
        self._stream.flush()
        self._is_drawn = True

    def _clear(self) -> None:
        if self._is_drawn:
            self._stream.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self._stream.flush()
            self._is_drawn = False

    def _text(self, now: float) -> str:
        rate = (self._done - self._skipped) / max(now - self._start, 1e-9)
        done, per_s = self._amount(self._done), self._amount(round(rate))
        if not self._total:
            return f"{done}, {per_s}/s"
        percent = min(100, 100 * self._done // self._total)
        text = f"{percent:3} %, {done} of {self._amount(self._total)}, {per_s}/s"
        left_s = (self._total - self._done) / rate if rate > 0 else 0
        return f"{text}, {duration(left_s)} left" if left_s > 0 else text

    def _amount(self, count: int) -> str:
        return size(count) if self._unit == "B" else f"{count:,} {self._unit}"


class Share:
    """What one upload adds to the progress of all."""

    def __init__(self, progress: Progress) -> None:
        self._progress: Final = progress
        self._sent_bytes = 0

    def sent(self, sent_bytes: int, _: int) -> None:
        """So much of the file has been sent; less than before when it is sent again."""
        self._progress.advance(sent_bytes - self._sent_bytes)
        self._sent_bytes = sent_bytes


def size(count: float) -> str:
    """Bytes for people, as `1.5 MB`."""
    for unit in _UNITS:
        if abs(count) < 1000 or unit == _UNITS[-1]:
            break
        count /= 1000
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def duration(seconds: float) -> str:
    """Minutes and seconds, or hours, minutes and seconds."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
