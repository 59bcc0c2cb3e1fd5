"""The users of a release by their vectors, kept fresh for those who are active."""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from itertools import islice

import numpy as np

from keek_server.clock import now_us
from keek_server.errors import KeekError
from keek_server.feed.history import user_vector
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.projection import Projection
from keek_server.releases.live import LiveRelease
from keek_server.releases.opening import ServingRelease
from keek_server.retrieval.fresh import VECTORS
from keek_server.towers.features import Float32Array

logger = logging.getLogger(__name__)

_ROWS = 1000
_ROWS_BACK = 200_000
"""The most rows that are read again for a new release."""
_USERS = 64
"""Users a round: feeds share the user tower."""
_USERS_A_TRIP = 16
"""Users whose histories are read at once: they are decoded on the event loop."""
_WAITING = 10_000
"""Users that wait; of more, the latest."""


class AudienceFollower:
    """Gives users who interact their new vectors, those who were active last first."""

    def __init__(
        self, log: InteractionLog, projection: Projection, live: LiveRelease, *, poll_s: float
    ) -> None:
        self._log = log
        self._projection = projection
        self._live = live
        self._poll_s = poll_s
        self._serving: ServingRelease | None = None
        self._seq = 0
        self._waiting: OrderedDict[str, None] = OrderedDict()

    async def run(self) -> None:
        """Follows the log from where the users of the current release end, until cancelled."""
        while True:
            try:
                await self.catch_up()
            except KeekError as error:
                logger.debug("the audience waits: %s", error)
            await asyncio.sleep(self._poll_s)

    async def catch_up(self) -> None:
        """Reads what was appended, and embeds some of the users that wait.

        Raises:
            UnavailableError: When a part is down; the users wait on.
        """
        serving = self._live.current
        if serving is None:
            return
        if serving is not self._serving:
            await self._start(serving)
        await self._read()
        chosen = list(islice(reversed(self._waiting), _USERS))
        if chosen:
            await self._embed(serving, chosen)
            for user_id in chosen:
                del self._waiting[user_id]

    async def _start(self, serving: ServingRelease) -> None:
        """Goes back to where the release's own users end. Those who wait already wait on."""
        last_seq = (await self._log.extent()).last_seq
        self._seq = min(max(serving.release.manifest.log_seq, last_seq - _ROWS_BACK), last_seq)
        self._serving = serving

    async def _read(self) -> None:
        # No further than the histories go: who is embedded too early would wait for the next interaction.
        end = await self._projection.watermark()
        while rows := [row for row in await self._log.read(self._seq, _ROWS) if row.seq <= end]:
            self._seq = rows[-1].seq
            for row in rows:
                self._waiting[row.user_id] = None
                self._waiting.move_to_end(row.user_id)
            while len(self._waiting) > _WAITING:
                self._waiting.popitem(last=False)
            if len(rows) < _ROWS:
                return

    async def _embed(self, serving: ServingRelease, user_ids: Sequence[str]) -> None:
        """Gives those who have interacted with any video of the release their vectors, which their next feeds
        find, too."""
        vectors: dict[str, Float32Array] = {}
        for start in range(0, len(user_ids), _USERS_A_TRIP):
            trip = user_ids[start : start + _USERS_A_TRIP]
            found = await self._vectors(serving, trip)
            vectors.update(
                (id_, vector) for id_, vector in zip(trip, found, strict=True) if vector is not None
            )
        if vectors:
            serving.audience.put(list(vectors), {VECTORS: np.stack(list(vectors.values()))})

    async def _vectors(
        self, serving: ServingRelease, user_ids: Sequence[str]
    ) -> Sequence[Float32Array | None]:
        histories = await self._projection.histories(user_ids, serving.release.manifest.history_length)
        now, videos = now_us(), serving.fresh.index
        return await asyncio.gather(
            *(
                user_vector(serving.users, videos, user_id, history, now)
                for user_id, history in zip(user_ids, histories, strict=True)
            )
        )
