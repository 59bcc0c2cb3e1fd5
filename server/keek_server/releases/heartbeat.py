"""Says of this server, again and again, what it runs."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Mapping

from keek_server.clock import now_us
from keek_server.errors import KeekError
from keek_server.releases.fleet import Figures, Fleet, ServerStatus
from keek_server.releases.live import LiveRelease

logger = logging.getLogger(__name__)

_PROBLEM_CHARACTERS = 512


class Heartbeat:
    """Beats every `interval_s`, and at once when something has changed."""

    def __init__(
        self,
        fleet: Fleet,
        live: LiveRelease,
        name: str,
        figures: Callable[[], Mapping[str, Figures]],
        *,
        interval_s: float,
    ) -> None:
        self._fleet = fleet
        self._live = live
        self._name = name
        self._figures = figures
        self._interval_s = interval_s
        self._server_id = uuid.uuid4().hex
        self._start_time_us = now_us()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._live.changed.clear()
            try:
                await self._fleet.beat(self._status())
            except KeekError as error:
                logger.warning("this server cannot say that it lives: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._live.changed.wait()

    async def aclose(self) -> None:
        """Says that it stops; without that it counts as gone a little later."""
        with contextlib.suppress(KeekError):
            await self._fleet.leave(self._server_id)

    def _status(self) -> ServerStatus:
        served = self._live.served
        return ServerStatus(
            server_id=self._server_id,
            name=self._name,
            start_time_us=self._start_time_us,
            heartbeat_time_us=now_us(),
            plan_seq=served.seq,
            release_id=served.active.release.id if served.active else "",
            trial_release_id=served.trial[1].release.id if served.trial else "",
            held_release_ids=[each.release.id for each in served.held],
            problem=self._live.problem[:_PROBLEM_CHARACTERS],
            figures=dict(self._figures()),
        )
