"""The log as a CSV file that grows with it, for those who still read the prototype's file."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from keek_server.errors import SetupError, UnavailableError
from keek_server.interactions.csv_file import CsvFile, Position
from keek_server.interactions.csv_lines import csv_line
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.rows import LoggedInteraction, tail_of

logger = logging.getLogger(__name__)

_ROWS = 1000
_STAND_BY_S = 1.0
_RETRY_S = 1.0
_REFUSED_S = 60.0

T = TypeVar("T")


class CsvTail:
    """Appends what stands in the log behind the file's position.

    Any number of servers may run one for the same file: one of them writes, and when it is gone
    another goes on. Nothing here is on the path of a request.
    """

    def __init__(self, log: InteractionLog, path: Path, *, poll_s: float) -> None:
        """
        Args:
            log: What is followed.
            path: The file; its position and its lock lie beside it.
            poll_s: How often the log is asked for more.
        """
        self._log = log
        self._file = CsvFile(path)
        self._poll_s = poll_s

    async def run(self) -> None:
        """Follows the log until cancelled. What stands in the way is logged, and tried again."""
        # One thread does what it is given in turn: the claim is given back behind the last write.
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="csv-tail")
        try:
            while True:
                pause_s = await self._attempt(thread)
                await asyncio.sleep(pause_s)
        finally:
            thread.submit(self._file.release)
            thread.shutdown(wait=False)

    async def _attempt(self, thread: ThreadPoolExecutor) -> float:
        """Follows the log until something fails; returns how long to wait then, in seconds."""
        try:
            if await _in(thread, self._file.claim):
                await self._follow(thread)
        except SetupError as error:
            logger.error("the interactions are not written to a file: %s", error)  # noqa: TRY400
            return _REFUSED_S
        except UnavailableError as error:
            logger.warning("%s waits: %s", self._file.path, error)
            return _RETRY_S
        except OSError as error:
            logger.warning("cannot write %s: %s", self._file.path, error.strerror or error)
            return _RETRY_S
        return _STAND_BY_S

    async def _follow(self, thread: ThreadPoolExecutor) -> None:
        extent = await self._log.extent()
        known = await _in(thread, lambda: self._file.position(extent))
        await self._check(known)
        position = await _in(thread, lambda: self._file.begin(known))
        logger.info("%s is written, from row %d of the log on", self._file.path, position.seq + 1)
        while True:
            rows = await self._log.read(position.seq, _ROWS)
            if rows:
                await self._check(position)
                position = await self._append(thread, position, rows)
            if len(rows) < _ROWS:
                await asyncio.sleep(self._poll_s)

    async def _check(self, position: Position) -> None:
        """
        Raises:
            SetupError: When another row stands at the position than the one that is in the file.
        """
        if position.tail and not await self._log.holds(position.seq, position.tail):
            raise self._file.lost_rows()

    async def _append(
        self, thread: ThreadPoolExecutor, position: Position, rows: list[LoggedInteraction]
    ) -> Position:
        def append() -> Position:
            lines = (csv_line(row.user_id, row.video_id, row.kind, row.event_time_us) for row in rows)
            return self._file.append(position, "".join(lines), rows[-1].seq, tail_of(rows[-1]))

        return await _in(thread, append)


async def _in(thread: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, call)
