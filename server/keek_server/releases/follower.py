"""Brings changes of the catalogue to every live release of this server, as they come."""

import asyncio
import contextlib
import logging

from keek_server.errors import KeekError
from keek_server.releases.live import LiveRelease
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.changes import ChangeFeed

logger = logging.getLogger(__name__)

_PAGE = 1000


class CatalogueFollower:
    """Asks for changes every `poll_s`, and at once when this server made one."""

    def __init__(self, feed: ChangeFeed, catalogue: Catalogue, live: LiveRelease, *, poll_s: float) -> None:
        self._feed = feed
        self._catalogue = catalogue
        self._live = live
        self._poll_s = poll_s
        self._woken = asyncio.Event()
        self._seq: int | None = None

    def notify(self) -> None:
        """Says that there is a change."""
        self._woken.set()

    async def run(self) -> None:
        """Follows until cancelled."""
        failing = False
        while True:
            self._woken.clear()
            try:
                await self._follow()
            except KeekError as error:
                if not failing:
                    logger.warning("videos that changed have to wait: %s", error)
                failing = True
            else:
                failing = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._woken.wait()

    async def apply(self) -> None:
        """Applies the deletions up to now; new videos follow by themselves.

        Raises:
            UnavailableError: When the database fails.
        """
        await self._forget_briefs(await self._feed.last())
        for fresh in self._live.followed():
            await fresh.apply()

    async def _follow(self) -> None:
        last = await self._feed.last()
        await self._forget_briefs(last)
        for fresh in self._live.followed():
            # By each release's own cursor: one that was swapped in may lack what another one has.
            if fresh.is_behind(last):
                await fresh.catch_up()

    async def _forget_briefs(self, last: int) -> None:
        if self._seq is None:
            self._catalogue.forget_all()
            self._seq = last
        while self._seq < last and (changed := await self._feed.read_ids(self._seq, _PAGE)):
            self._catalogue.forget(video_id for _, video_id in changed)
            self._seq = changed[-1][0]
