"""The projector: follows the log and applies it to the projection."""

import asyncio
import logging

from keek_server.errors import UnavailableError
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.projection import Projection

logger = logging.getLogger(__name__)

_ROWS = 1000
_POLL_S = 1.0


class Projector:
    """Applies what stands in the log behind the watermark, for as long as it runs.

    Rows that this server appended are applied at once (`notify`); those of other servers
    and of imports within a second. An empty Redis is noticed by its watermark and rebuilt.
    """

    def __init__(self, log: InteractionLog, projection: Projection) -> None:
        self._log = log
        self._projection = projection
        self._wake = asyncio.Event()
        self._advanced = asyncio.Condition()
        self._applied = 0

    def notify(self) -> None:
        """Says that the log has grown."""
        self._wake.set()

    async def wait_for(self, seq: int, timeout_s: float) -> bool:
        """Waits until the projection has reached `seq`; False when it has not in time."""
        try:
            async with asyncio.timeout(timeout_s), self._advanced:
                await self._advanced.wait_for(lambda: self._applied >= seq)
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Follows the log until cancelled."""
        while True:
            self._wake.clear()
            try:
                await self.catch_up()
            except UnavailableError as error:
                logger.warning("the projection waits: %s", error)
                await asyncio.sleep(_POLL_S)
                continue
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def catch_up(self) -> None:
        """Applies everything that stands in the log now."""
        await self._advance_to(await self._projection.watermark())
        while rows := await self._log.read(self._applied, _ROWS):
            await self._advance_to(await self._projection.apply(self._applied, rows))

    async def _advance_to(self, seq: int) -> None:
        async with self._advanced:
            # Also backwards: an emptied Redis starts again from 0.
            self._applied = seq
            self._advanced.notify_all()
