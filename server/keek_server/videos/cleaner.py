"""Removes what nobody needs any more: files, uploads that were given up, requests that are long past."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from keek_server.clock import now_us
from keek_server.errors import KeekError
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.videos.media import MediaStore
from keek_server.videos.removals import Removal, Removals
from keek_server.videos.requests import forget_requests
from keek_server.videos.uploads import Upload, Uploads

logger = logging.getLogger(__name__)

_LOOK_S = 10.0
"""How often files are looked for that another server left, or that could not be removed."""
_TIDY_S = 600.0
_PAGE = 100
_PATIENCE = 3
_REQUEST_KEEP_US = 7 * 24 * 3600 * 1_000_000

T = TypeVar("T")


class Cleaner:
    """Looks from time to time, and at once when this server deleted a video; any number of servers may."""

    def __init__(self, database: Database, uploads: Uploads, media: MediaStore, settings: Settings) -> None:
        self._database = database
        self._uploads = uploads
        self._media = media
        self._removals = Removals(database)
        self._keep_us = int(settings.upload_keep_s * 1e6)
        self._woken = asyncio.Event()
        self._files = _Walk(self._files_behind, self._remove)
        self._old = _Walk(self._uploads_behind, self._forget)

    def notify(self) -> None:
        """Says that there are files to remove."""
        self._woken.set()

    async def run(self) -> None:
        """Cleans until cancelled."""
        tidied = -_TIDY_S
        while True:
            self._woken.clear()
            try:
                await self._files.go()
                if time.monotonic() - tidied >= _TIDY_S:
                    tidied = time.monotonic()
                    await self.tidy()
            except KeekError as error:
                logger.warning("what is not needed stays for a while: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._woken.wait()

    async def tidy(self) -> None:
        """Forgets uploads and requests that are old.

        Raises:
            UnavailableError: When the database is down or late.
        """
        await self._old.go()
        while await forget_requests(self._database, now_us() - _REQUEST_KEEP_US, 10 * _PAGE):
            pass

    async def _files_behind(self, last: Removal | None) -> Sequence[Removal]:
        return await self._removals.page(last.seq if last else 0, _PAGE)

    async def _remove(self, removal: Removal) -> None:
        await self._media.remove(removal.url)
        await self._removals.done(removal)

    async def _uploads_behind(self, last: Upload | None) -> Sequence[Upload]:
        return await self._uploads.unchanged_since(now_us() - self._keep_us, last, _PAGE)

    async def _forget(self, upload: Upload) -> None:
        """The row goes last: while there is one, this can be repeated."""
        await self._media.drop_parts(upload.upload_id)
        files = await self._media.files_of(upload.upload_id)
        await self._uploads.forget(upload, now_us() - self._keep_us, files)
        self.notify()


class _Walk(Generic[T]):
    """Goes through all rows; where too much fails it ends, and goes on behind that the next time."""

    def __init__(
        self, page: Callable[[T | None], Awaitable[Sequence[T]]], work: Callable[[T], Awaitable[None]]
    ) -> None:
        self._page = page
        self._work = work
        self._last: T | None = None

    async def go(self) -> None:
        failures = 0
        while rows := await self._page(self._last):
            for row in rows:
                self._last = row
                try:
                    await self._work(row)
                except KeekError as error:
                    logger.warning("%s stays for a while: %s", row, error)
                    failures += 1
                    if failures == _PATIENCE:
                        return
        self._last = None
