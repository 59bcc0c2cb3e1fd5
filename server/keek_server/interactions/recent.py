"""The rows that this server appended last, kept for those who follow the log."""

from bisect import bisect_right
from collections.abc import Sequence

from keek_server.interactions.rows import LoggedInteraction

_ROWS_KEPT = 20_000


class RecentRows:
    """Saves the projector reading back what was written a moment ago."""

    def __init__(self) -> None:
        self._runs: list[Sequence[LoggedInteraction]] = []
        self._last_seqs: list[int] = []
        self._count = 0

    def add(self, rows: Sequence[LoggedInteraction]) -> None:
        """Keeps rows of one transaction that has committed.

        Args:
            rows: In the order of the log, with numbers that follow each other; others are not kept,
                since another server's row could stand between them.
        """
        if not rows or rows[-1].seq - rows[0].seq != len(rows) - 1:
            return
        if self._last_seqs and rows[0].seq <= self._last_seqs[-1]:
            # The log went back: it was restored from a backup.
            self.forget()
        self._runs.append(rows)
        self._last_seqs.append(rows[-1].seq)
        self._count += len(rows)
        while self._count > _ROWS_KEPT:
            self._count -= len(self._runs.pop(0))
            self._last_seqs.pop(0)

    def forget(self) -> None:
        """Keeps none of them any more: some may no longer stand in the log."""
        self._runs.clear()
        self._last_seqs.clear()
        self._count = 0

    def after(self, seq: int, limit: int) -> list[LoggedInteraction]:
        """The rows that follow a number in the log, as far as it is certain; empty when it is not."""
        found: list[LoggedInteraction] = []
        for place in range(bisect_right(self._last_seqs, seq), len(self._runs)):
            run = self._runs[place]
            if run[0].seq > seq + 1 or len(found) == limit:
                break
            found += run[seq + 1 - run[0].seq :][: limit - len(found)]
            seq = found[-1].seq
        return found
