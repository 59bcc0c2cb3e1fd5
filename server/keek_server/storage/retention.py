"""Retention: what is older than the settings say is removed, a month at a time."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from keek_server.clock import now_us
from keek_server.errors import UnavailableError

logger = logging.getLogger(__name__)

Prune = Callable[[int], Awaitable[bool]]
"""Removes a bounded piece of what lies before a time in microseconds; False when nothing does."""

_INTERVAL_S = 3600.0
_DAY_US = 24 * 3600 * 1_000_000


class Retention:
    """Looks once an hour; any number of servers may do so."""

    def __init__(self, days: Mapping[Prune, int | None]) -> None:
        """
        Args:
            days: How far back each kind of rows is kept; None for ever.
        """
        self._days = days

    async def run(self) -> None:
        """Prunes until cancelled."""
        while True:
            try:
                await self.prune()
            except UnavailableError as error:
                logger.warning("retention waits: %s", error)
            await asyncio.sleep(_INTERVAL_S)

    async def prune(self) -> None:
        """Removes everything that is due now, in bounded transactions.

        Raises:
            UnavailableError: When the database is down or late; what was removed stays removed.
        """
        for prune, days in self._days.items():
            if days is not None:
                before_us = now_us() - days * _DAY_US
                while await prune(before_us):
                    pass
