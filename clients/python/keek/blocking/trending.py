"""Calls of the TrendingService, and the health check."""

from collections.abc import Generator, Iterator

from keek import wire
from keek.blocking.connection import BlockingConnection
from keek.messages import trending_of
from keek.v1.trending_service_pb2 import (
    ListTrendingRequest,
    ListTrendingResponse,
    TrendingVideo,
    WatchTrendingRequest,
    WatchTrendingResponse,
)


class TrendingCalls(BlockingConnection):
    """Feature of `keek.Client`."""

    def list_trending(
        self,
        *,
        page_size: int = 0,
        page_token: str = "",
        rising: bool = False,
        tag: str = "",
        region: str = "",
        timeout_s: float | None = None,
    ) -> ListTrendingResponse:
        """One page of what many users like at the moment, strongest first.

        Args:
            rising: Order by how fast the interest in a video grows, not by how much there is.
            tag: Count interactions with videos of this tag alone.
            region: Count interactions in this region alone.

        Raises:
            FailedPreconditionError: The server keeps no lists by tag or by region.
            ValueError: There is a tag and a region.
        """
        request = trending_of(
            ListTrendingRequest(page_size=page_size, page_token=page_token),
            rising=rising,
            tag=tag,
            region=region,
        )
        return self._call(
            self._stubs.trending.ListTrending, request, timeout_s, self._timeouts.list_trending_s
        )

    def iter_trending(
        self,
        *,
        page_size: int = 100,
        rising: bool = False,
        tag: str = "",
        region: str = "",
        timeout_s: float | None = None,
    ) -> Iterator[TrendingVideo]:
        """All trending videos, page after page, as `list_trending`; `timeout_s` is for one page."""
        request = trending_of(ListTrendingRequest(page_size=page_size), rising=rising, tag=tag, region=region)
        pages = self._pages(
            self._stubs.trending.ListTrending, request, timeout_s, self._timeouts.list_trending_s
        )
        return (video for page in pages for video in page.videos)

    def watch_trending(
        self,
        *,
        page_size: int = 0,
        rising: bool = False,
        tag: str = "",
        region: str = "",
        timeout_s: float | None = None,
    ) -> Generator[WatchTrendingResponse, None, None]:
        """The head of what `list_trending` gives, once at the start and then at every change.

        One call that starts with the first `next()` and has no end of its own: it raises
        `DeadlineExceededError` after `timeout_s`, an hour by default; then watch again. To stop
        early, call the generator's `close()`, or drop it.
        """
        request = trending_of(
            WatchTrendingRequest(page_size=page_size), rising=rising, tag=tag, region=region
        )
        return self._stream(
            self._stubs.trending.WatchTrending, request, timeout_s, self._timeouts.watch_trending_s
        )

    def check_health(self, service: str = "", *, timeout_s: float | None = None) -> bool:
        """Whether the server, or one service as `keek.v1.FeedService`, takes calls.

        Raises:
            NotFoundError: The server has no such service.
        """
        request = wire.HealthCheckRequest(service=service)
        response = self._call(self._stubs.health_check, request, timeout_s, self._timeouts.check_health_s)
        return bool(response.status == wire.SERVING)
