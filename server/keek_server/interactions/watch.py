"""Watching the head of a trending list: one reader a list, however many watch it."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

from keek_server.errors import UnavailableError
from keek_server.interactions.trending import TrendingVideo
from keek_server.videos.slots import Slots

logger = logging.getLogger(__name__)

Read = Callable[[], Awaitable[list[TrendingVideo]]]

WATCHED = 100
"""Videos of a list that can be watched."""

_POLL_S = 0.25


@dataclass(slots=True)
class _Board:
    """One list, read again and again while anybody watches it."""

    read: Read
    videos: list[TrendingVideo]
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    watchers: int = 0

    async def follow(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            try:
                videos = await self.read()
            except UnavailableError as error:
                # The list stands still until Redis is back.
                logger.debug("a watched list is not read: %s", error)
                continue
            await self.put(videos)

    async def put(self, videos: list[TrendingVideo]) -> None:
        """Tells the watchers, if the list is another one."""
        if _ids(videos) != _ids(self.videos):
            async with self.changed:
                self.videos = videos
                self.changed.notify_all()


class TrendingWatch:
    """Shares the reading of lists between those who watch them."""

    def __init__(self, slots: Slots) -> None:
        """
        Args:
            slots: The places for those who watch.
        """
        self._slots = slots
        self._boards: dict[str, tuple[_Board, asyncio.Task[None]]] = {}

    async def lists(self, name: str, read: Read, limit: int) -> AsyncGenerator[list[TrendingVideo], None]:
        """The first `limit` videos of a list, at once and whenever they change, until closed.

        Args:
            name: Of the list; the same for all who watch it.
            read: Gives its first WATCHED videos.
            limit: At most WATCHED.

        Raises:
            OverloadedError: When too many watch already.
            UnavailableError: When the list cannot be read at the start.
        """
        with self._slots.take():
            videos = await read()
            if name not in self._boards:
                board = _Board(read, videos)
                self._boards[name] = board, asyncio.create_task(board.follow(), name=f"watch {name}")
            board, task = self._boards[name]
            board.watchers += 1
            try:
                await board.put(videos)
                while True:
                    videos = board.videos[:limit]
                    yield videos
                    async with board.changed:
                        while _ids(board.videos[:limit]) == _ids(videos):
                            await board.changed.wait()
            finally:
                board.watchers -= 1
                if not board.watchers:
                    self._boards.pop(name, None)
                    task.cancel()
                    await asyncio.wait([task])


def _ids(videos: list[TrendingVideo]) -> list[str]:
    return [video.video_id for video in videos]
