"""Calls of the FeedService."""

from collections.abc import AsyncGenerator, Iterable

from keek.asynchronous.connection import AsyncConnection
from keek.v1.feed_service_pb2 import (
    ExplainFeedRequest,
    ExplainFeedResponse,
    ListFeedRequest,
    ListFeedResponse,
    StreamFeedRequest,
    StreamFeedResponse,
)
from keek.v1.video_filter_pb2 import VideoFilter


class FeedCalls(AsyncConnection):
    """Feature of `keek.aio.Client`."""

    async def list_feed(
        self,
        user_id: str,
        *,
        page_size: int = 0,
        page_token: str = "",
        video_filter: VideoFilter | None = None,
        blocked_owner_ids: Iterable[str] = (),
        timeout_s: float | None = None,
    ) -> ListFeedResponse:
        """One page of a user's feed; a user who is not known gets trending and popular videos."""
        request = ListFeedRequest(
            user_id=user_id,
            page_size=page_size,
            page_token=page_token,
            filter=video_filter,
            blocked_owner_ids=blocked_owner_ids,
        )
        return await self._call(self._stubs.feed.ListFeed, request, timeout_s, self._timeouts.list_feed_s)

    def feed_pages(
        self,
        user_id: str,
        *,
        page_size: int = 0,
        page_token: str = "",
        video_filter: VideoFilter | None = None,
        blocked_owner_ids: Iterable[str] = (),
        timeout_s: float | None = None,
    ) -> AsyncGenerator[ListFeedResponse, None]:
        """Page after page until nothing is left, each asked for when it is needed.

        No video repeats. `timeout_s` is for one page.
        """
        request = ListFeedRequest(
            user_id=user_id,
            page_size=page_size,
            page_token=page_token,
            filter=video_filter,
            blocked_owner_ids=blocked_owner_ids,
        )
        return self._pages(self._stubs.feed.ListFeed, request, timeout_s, self._timeouts.list_feed_s)

    def stream_feed(
        self,
        user_id: str,
        *,
        page_count: int = 0,
        page_size: int = 0,
        page_token: str = "",
        video_filter: VideoFilter | None = None,
        blocked_owner_ids: Iterable[str] = (),
        timeout_s: float | None = None,
    ) -> AsyncGenerator[StreamFeedResponse, None]:
        """Pages as the server sends them, in one call that starts with the first iteration.

        When it fails after some pages, go on with the `next_page_token` of the last one. To stop
        early at once, use `contextlib.aclosing`.
        """
        request = StreamFeedRequest(
            user_id=user_id,
            page_count=page_count,
            page_size=page_size,
            page_token=page_token,
            filter=video_filter,
            blocked_owner_ids=blocked_owner_ids,
        )
        return self._stream(self._stubs.feed.StreamFeed, request, timeout_s, self._timeouts.stream_feed_s)

    async def explain_feed(
        self,
        user_id: str,
        video_ids: Iterable[str] = (),
        *,
        page_size: int = 0,
        video_filter: VideoFilter | None = None,
        blocked_owner_ids: Iterable[str] = (),
        timeout_s: float | None = None,
    ) -> ExplainFeedResponse:
        """What every stage did for a user's feed, and why each of `video_ids` is in it or absent."""
        request = ExplainFeedRequest(
            user_id=user_id,
            page_size=page_size,
            video_ids=video_ids,
            filter=video_filter,
            blocked_owner_ids=blocked_owner_ids,
        )
        return await self._call(
            self._stubs.feed.ExplainFeed, request, timeout_s, self._timeouts.explain_feed_s
        )
