"""Brings changes of the catalogue to every live release of this server, as they come."""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from keek_server.errors import KeekError
from keek_server.releases.fresh import FreshVideos
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
        self._running: dict[FreshVideos, asyncio.Task[None]] = {}
        self._failing: set[FreshVideos | None] = set()

    def notify(self) -> None:
        """Says that there is a change."""
        self._woken.set()

    async def run(self) -> None:
        """Follows until cancelled."""
        try:
            while True:
                self._woken.clear()
                with self._reported(None):
                    await self._follow()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await self._woken.wait()
        finally:
            running = list(self._running.values())
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

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
        followed = self._live.followed()
        self._failing.intersection_update({None, *followed})
        for fresh in followed:
            # By each release's own cursor: one that was swapped in may lack what another one has. And each at
            # its own pace: a release that is tried, and is slow or fails, holds no other one up.
            if fresh.is_behind(last) and fresh not in self._running:
                self._running[fresh] = asyncio.create_task(self._catch_up(fresh))

    async def _catch_up(self, fresh: FreshVideos) -> None:
        try:
            with self._reported(fresh):
                await fresh.catch_up()
                # What came when it had just read.
                self._woken.set()
        finally:
            del self._running[fresh]

    @contextmanager
    def _reported(self, fresh: FreshVideos | None) -> Iterator[None]:
        """Says once what fails, until it works again; the next turn comes by itself."""
        try:
            yield
        except KeekError as error:
            if fresh not in self._failing:
                logger.warning("videos that changed have to wait: %s", error)
            self._failing.add(fresh)
        except Exception:
            if fresh not in self._failing:
                logger.exception("videos that changed have to wait")
            self._failing.add(fresh)
        else:
            self._failing.discard(fresh)

    async def _forget_briefs(self, last: int) -> None:
        if self._seq is None:
            self._catalogue.forget_all()
            self._seq = last
        while self._seq < last and (changed := await self._feed.read_ids(self._seq, _PAGE)):
            self._catalogue.forget(video_id for _, video_id in changed)
            self._seq = changed[-1][0]
