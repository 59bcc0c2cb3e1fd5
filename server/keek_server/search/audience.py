"""The users of a release by their vectors, kept fresh for those who are active."""

import asyncio
import logging

import numpy as np

from keek_server.clock import now_us
from keek_server.errors import KeekError
from keek_server.feed.history import history_inputs
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.projection import Projection
from keek_server.releases.live import LiveRelease, ServingRelease

logger = logging.getLogger(__name__)

_ROWS = 1000
_USERS = 64
"""Users a round: feeds share the user tower."""


class AudienceFollower:
    """Gives users who interact their new vectors; of more users than it can serve, the latest."""

    def __init__(
        self, log: InteractionLog, projection: Projection, live: LiveRelease, *, poll_s: float
    ) -> None:
        self._log = log
        self._projection = projection
        self._live = live
        self._poll_s = poll_s
        self._seq = 0
        self._waiting: dict[str, None] = {}

    async def run(self) -> None:
        """Follows the log from its present end, until cancelled."""
        self._seq = (await self._log.extent()).last_seq
        while True:
            try:
                await self.catch_up()
            except KeekError as error:
                logger.debug("the audience waits: %s", error)
            await asyncio.sleep(self._poll_s)

    async def catch_up(self) -> None:
        """Reads what was appended, and embeds the users that were active last.

        Raises:
            UnavailableError: When a part is down; the users come again with their next interaction.
        """
        while rows := await self._log.read(self._seq, _ROWS):
            self._seq = rows[-1].seq
            for row in rows:
                self._waiting.pop(row.user_id, None)
                self._waiting[row.user_id] = None
            if len(rows) < _ROWS:
                break
        chosen = list(self._waiting)[-_USERS:]
        self._waiting.clear()
        if chosen and self._live.current is not None:
            await self._embed(self._live.current, chosen)

    async def _embed(self, serving: ServingRelease, user_ids: list[str]) -> None:
        length = serving.release.manifest.history_length
        now = now_us()
        inputs = []
        for user_id in user_ids:
            history = (await self._projection.user(user_id)).history[-length:]
            own = history_inputs(serving.fresh.index, user_id, history, now)
            if len(own.kinds):
                inputs.append(own)
        if inputs:
            vectors = await asyncio.gather(*map(serving.users.vector, inputs))
            serving.audience.put([own.user_id for own in inputs], {"vectors": np.stack(vectors)})
