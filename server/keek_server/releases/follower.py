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
        self._failing = False

    def notify(self) -> None:
        """Says that there is a change."""
        self._woken.set()

    async def run(self) -> None:
        """Follows until cancelled."""
        while True:
            self._woken.clear()
            try:
                await self.catch_up()
            except KeekError as error:
                if not self._failing:
                    logger.warning("videos that changed have to wait: %s", error)
                self._failing = True
            else:
                self._failing = False
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._woken.wait()

    async def catch_up(self) -> None:
        """Applies all changes up to now.

        Raises:
            UnavailableError: When the database or Triton fails; deletions that were read are applied.
        """
        last = await self._feed.last()
        if last == self._seq:
            if self._failing:
                await self._bring_to_releases()
            return
        await self._forget_briefs(last)
        await self._bring_to_releases()

    async def _bring_to_releases(self) -> None:
        if self._live.current is not None:
            await self._live.current.fresh.catch_up()

    async def _forget_briefs(self, last: int) -> None:
        seq = last if self._seq is None else self._seq
        while seq < last and (changes := await self._feed.read(seq, _PAGE)):
            self._catalogue.forget(change.video_id for change in changes)
            seq = changes[-1].seq
        self._seq = last
