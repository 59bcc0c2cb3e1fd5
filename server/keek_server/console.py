"""What the commands say on standard error."""

import logging
import sys
import time
from types import TracebackType

_TERMINAL_EVERY_S = 0.1
_PLAIN_EVERY_S = 5.0


def log_to_stderr(who: str = "") -> None:
    """Keek's own messages from INFO on, those of libraries from WARNING on.

    Args:
        who: What stands before each message, where several processes write to one standard error.
    """
    logging.basicConfig(
        level=logging.WARNING,
        format=f"%(asctime)s %(levelname)s {who}%(name)s: %(message)s",
        stream=sys.stderr,
    )
    for package in ("keek_server", "keek_training"):
        logging.getLogger(package).setLevel(logging.INFO)


class Progress:
    """How far a command is: one line that is written over on a terminal, a line now and then elsewhere."""

    def __init__(self, what: str, *, shown: bool = True) -> None:
        """
        Args:
            what: What is counted, as `rows`.
            shown: Whether anything is written at all.
        """
        self._what = what
        self._shown = shown
        self._terminal = sys.stderr.isatty()
        self._next = 0.0
        self._open = False

    def show(self, done: int, total: int) -> None:
        """Says that `done` of `total` is done, unless it was said a moment ago."""
        now = time.monotonic()
        if not self._shown or now < self._next:
            return
        self._next = now + (_TERMINAL_EVERY_S if self._terminal else _PLAIN_EVERY_S)
        line = f"{done:,} of {total:,} {self._what}"
        sys.stderr.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
        sys.stderr.flush()
        self._open = self._terminal

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._open:
            sys.stderr.write("\r\x1b[K")
