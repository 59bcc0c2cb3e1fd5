"""Feeds of two releases side by side: what users would get of each, shown to nobody."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Protocol

from keek_server.errors import FailedPreconditionError
from keek_server.feed.types import FeedPage, FeedQuery
from keek_server.releases.opening import ServingRelease
from keek_server.releases.plan import ReleaseState
from keek_server.releases.registry import ReleaseRegistry
from keek_server.videos.slots import Slots

_USERS_AT_A_TIME = 4
"""Feeds that others wait for go first: this many users' feeds, of both releases, run beside them."""


class Opener(Protocol):
    """Has releases open."""

    def opened(self, release_id: str) -> AbstractAsyncContextManager[ServingRelease]:
        """A release, ready to answer until the block ends."""


class Feeds(Protocol):
    """Makes feeds."""

    async def run(self, query: FeedQuery, serving: ServingRelease | None = None) -> FeedPage:
        """One page of a release, without side effects."""


@dataclass(frozen=True, slots=True)
class FeedDiff:
    """One user's feed of each release."""

    user_id: str
    page: FeedPage
    other_page: FeedPage

    @property
    def overlap(self) -> float:
        """Share of the first feed's videos that the other one holds; of an empty one see `shared`."""
        return shared(_ids(self.page), _ids(self.other_page))


class FeedDiffer:
    """Makes both feeds of each user by the pipeline that everyone's feeds come from."""

    def __init__(
        self, registry: ReleaseRegistry, opener: Opener, feeds: Feeds, slots: Slots, *, deadline_s: float
    ) -> None:
        """
        Args:
            registry: Knows which releases there are.
            opener: Opens them.
            feeds: The pipeline.
            slots: The places for those who ask.
            deadline_s: For one feed.
        """
        self._registry = registry
        self._opener = opener
        self._feeds = feeds
        self._slots = slots
        self._deadline_s = deadline_s

    async def diff(
        self, release_id: str, other_release_id: str, user_ids: Sequence[str], page_size: int
    ) -> list[FeedDiff]:
        """Both feeds of every user, in the order given; a user who is named twice is shown once.

        Raises:
            NotFoundError: When a release is not registered.
            FailedPreconditionError: When the files of one are gone.
            OverloadedError: When others compare already.
            KeekError: When one cannot be opened, or a feed not be made.
        """
        with self._slots.take():
            async with AsyncExitStack() as stack:
                serving = await self._open(release_id, stack)
                other = await self._open(other_release_id, stack)
                return await self._compare(serving, other, list(dict.fromkeys(user_ids)), page_size)

    async def _open(self, release_id: str, stack: AsyncExitStack) -> ServingRelease:
        registered = await self._registry.get(release_id)
        if registered.state is not ReleaseState.READY:
            raise FailedPreconditionError(f"release {release_id} has no files: it makes no feeds")
        return await stack.enter_async_context(self._opener.opened(release_id))

    async def _compare(
        self, serving: ServingRelease, other: ServingRelease, user_ids: list[str], page_size: int
    ) -> list[FeedDiff]:
        places = asyncio.Semaphore(_USERS_AT_A_TIME)

        async def one(user_id: str) -> FeedDiff:
            query = FeedQuery(user_id, page_size, self._deadline_s)
            async with places:
                # In turn: an interaction in between is in the second feed alone, but the two do not
                # take each other's time.
                return FeedDiff(
                    user_id, await self._feeds.run(query, serving), await self._feeds.run(query, other)
                )

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(user_id)) for user_id in user_ids]
        except ExceptionGroup as errors:
            # One reason is enough; the other users' is mostly the same.
            raise errors.exceptions[0] from errors
        return [task.result() for task in tasks]


def shared(video_ids: Sequence[str], other_video_ids: Sequence[str]) -> float:
    """Share of the first that is among the second; 1 when both are empty, 0 when the first alone is."""
    if not video_ids:
        return 0.0 if other_video_ids else 1.0
    others = set(other_video_ids)
    return sum(video_id in others for video_id in video_ids) / len(video_ids)


def _ids(page: FeedPage) -> list[str]:
    return [item.video_id for item in page.selection.items]
