"""The exposure log: which videos were shown to whom, durable and off the request's path."""

import asyncio
import logging
import math
import uuid
from collections import deque
from functools import partial
from itertools import islice
from typing import Any, Final

import orjson
import sqlalchemy as sa

from keek_server import metrics
from keek_server.clock import now_us
from keek_server.errors import UnavailableError
from keek_server.feed.types import FeedPage, Selection
from keek_server.retrieval.ids import hash_id
from keek_server.storage.database import Database
from keek_server.storage.partitions import MonthlyPartitions
from keek_server.storage.tables import exposures

logger = logging.getLogger(__name__)

_MAX_WAITING = 20_000
_MAX_ROWS = 2_000
_FLUSH_S = 0.5
_CLOSING_S = 6.0
"""One write with the database's deadline: after one that was late another would be, too."""
_SETTLING_S: Final = 3.0
"""SQLAlchemy gives a connection two seconds to close."""
_REMEMBERED_US: Final = 30 * 24 * 3600 * 1_000_000
"""How long a batch may have to wait to be repeated."""
# One step for all: row by row, its thread asks the event loop's for the interpreter each time.
_SQLITE = sa.text(
    "INSERT INTO exposures (user_id, release_id, serve_time_us, slate, pool, arms, first_slot, slot_count,"
    " elapsed_us, degraded) SELECT value ->> 'user_id', value ->> 'release_id', value ->> 'serve_time_us',"
    " value ->> 'slate', value ->> 'pool', value ->> 'arms', value ->> 'first_slot', value ->> 'slot_count',"
    " value ->> 'elapsed_us', value ->> 'degraded' FROM json_each(:rows)"
)
# Changes no row when the batch is stored already. It waits for a transaction that may still store it: one
# that a broken connection left to PostgreSQL.
_MARK = sa.text(
    "INSERT INTO exposure_writers (writer_id, batch, write_time_us)"
    " VALUES (:writer_id, :batch, :write_time_us)"
    " ON CONFLICT (writer_id) DO UPDATE SET batch = excluded.batch, write_time_us = excluded.write_time_us"
    " WHERE exposure_writers.batch < excluded.batch"
)
_FORGET = sa.text("DELETE FROM exposure_writers WHERE write_time_us < :before_us")


class ExposureLog:
    """A side effect that remembers each page, and a task that writes what waits in batches."""

    name = "exposure log"

    def __init__(self, database: Database, *, sampling: float = 1.0) -> None:
        """
        Args:
            database: Where they go.
            sampling: Share of the users whose pages are remembered, all of each.
        """
        self._database = database
        self._points = sampling * 2**32
        self._partitions = MonthlyPartitions(database, exposures.c.serve_time_us)
        self._waiting: deque[dict[str, Any]] = deque()
        self._writer_id = uuid.uuid4().hex
        self._batch = 1
        # Rows of this batch, the first ones that wait, from its first write on: nobody knows whether a write
        # that failed is stored, so it is repeated as it was.
        self._tried = 0
        self._writing: asyncio.Task[int] | None = None

    def apply(self, page: FeedPage) -> None:
        """See `SideEffect`; when too many wait, the page is counted as dropped instead."""
        user_id = page.context.query.user_id
        if hash_id(user_id) % 2**32 >= self._points:
            return
        if len(self._waiting) >= _MAX_WAITING:
            metrics.exposures_dropped.inc()
            return
        context = page.context
        self._waiting.append(
            {
                "user_id": user_id,
                "release_id": context.serving.release.id,
                "serve_time_us": context.now_us,
                "slate": _slate(page.selection),
                "pool": page.selection.pool,
                "arms": list(context.assignment.arms) or None,
                "first_slot": len(context.query.served),
                "slot_count": context.query.page_size,
                "elapsed_us": int(page.elapsed_s * 1e6),
                "degraded": bool(context.degradations),
            }
        )

    async def run(self) -> None:
        """Writes until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            try:
                await self.flush()
            except UnavailableError as error:
                logger.warning("exposures wait: %s", error)

    async def aclose(self) -> None:
        """Writes what still waits, or says that it may be lost; within a bounded time."""
        try:
            async with asyncio.timeout(_CLOSING_S):
                await self.flush()
        except (UnavailableError, TimeoutError) as error:
            metrics.exposures_dropped.inc(len(self._waiting))
            reason = str(error) or "the database is late"
            logger.warning("%d exposures may be lost: %s", len(self._waiting), reason)
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing], timeout=_SETTLING_S)

    async def flush(self) -> None:
        """Writes everything that waits; what could not be written waits on.

        What comes meanwhile waits for the next time: under load there would be no end of small transactions.
        A write goes on when whoever flushes is cancelled, and the next one waits for it.
        """
        if self._writing is not None:
            # Whatever becomes of it: what it leaves is written now.
            await asyncio.wait([self._writing])
        left = len(self._waiting)
        while left > 0:
            if self._writing is None:
                self._writing = asyncio.create_task(self._write(min(_MAX_ROWS, left)))
                self._writing.add_done_callback(self._written)
            left -= await asyncio.shield(self._writing)

    async def _write(self, count: int) -> int:
        """Writes the first rows that wait, or again those of a write that failed; returns how many."""
        rows = list(islice(self._waiting, self._tried or count))
        # So little time lies between them that two months are the most.
        times_us = [row["serve_time_us"] for row in rows]
        for time_us in (min(times_us), max(times_us)):
            await self._partitions.cover(time_us)
        self._tried = len(rows)
        await self._database.transact(partial(_insert, rows, self._writer_id, self._batch))
        self._tried = 0
        self._batch += 1
        metrics.exposures_logged.inc(len(rows))
        for _ in rows:
            self._waiting.popleft()
        return len(rows)

    def _written(self, task: asyncio.Task[int]) -> None:
        self._writing = None
        if not task.cancelled():
            task.exception()  # Nobody may be left who asks for it.

    async def prune(self, before_us: int) -> bool:
        """Removes a bounded piece of the whole months before a time; False when none is left.

        Raises:
            UnavailableError: When the database is down or late.
        """
        async with self._database.write() as connection:
            return await self._partitions.prune(connection, before_us) > 0


def _insert(rows: list[dict[str, Any]], writer_id: str, batch: int, connection: sa.Connection) -> None:
    """Stores a batch unless it is stored already."""
    time_us = now_us()
    mark = {"writer_id": writer_id, "batch": batch, "write_time_us": time_us}
    if not connection.execute(_MARK, mark).rowcount:
        return
    if batch == 1:
        connection.execute(_FORGET, {"before_us": time_us - _REMEMBERED_US})
    if connection.dialect.name == "sqlite":
        connection.execute(_SQLITE, {"rows": orjson.dumps(rows).decode()})
    else:
        connection.execute(exposures.insert(), rows)


def _slate(selection: Selection) -> list[list[Any]]:
    """As the column has it."""
    slate: list[list[Any]] = [[item.video_id, int(item.source), item.score] for item in selection.items]
    if selection.propensities is None:
        return slate
    for row, propensity in zip(slate, selection.propensities, strict=True):
        row.append(None if math.isnan(propensity) else propensity)
    if selection.video_propensities is not None:
        for row, propensity in zip(slate, selection.video_propensities, strict=True):
            if propensity < 1.0:
                row.append(float(f"{propensity:.6g}"))
    return slate
