"""The blocking client."""

import datetime as dt
from collections.abc import Generator, Iterable, Iterator
from typing import Unpack

from keek import wire
from keek.blocking import BlockingConnection
from keek.messages import Outgoing, Recorded, RecordOptions, batches, interaction, recorded, trending_of
from keek.v1.feed_service_pb2 import (
    ExplainFeedRequest,
    ExplainFeedResponse,
    ListFeedRequest,
    ListFeedResponse,
    StreamFeedRequest,
    StreamFeedResponse,
)
from keek.v1.interaction_service_pb2 import (
    Interaction,
    InteractionKind,
    RecordInteractionRequest,
    RecordInteractionsResponse,
)
from keek.v1.trending_service_pb2 import (
    ListTrendingRequest,
    ListTrendingResponse,
    TrendingVideo,
    WatchTrendingRequest,
    WatchTrendingResponse,
)
from keek.v1.video_service_pb2 import (
    GetVideoRequest,
    ImportVideosRequest,
    ImportVideosResponse,
    ListVideosRequest,
    ListVideosResponse,
    Video,
)


class Client(BlockingConnection):
    """A blocking client of one Keek deployment; threads may share it.

        with keek.Client("keek:50051") as client:
            page = client.list_feed("u1", page_size=10)
            client.like("u1", page.items[0].video_id)

    It opens at its first call or `with`. Every call takes `timeout_s`, its deadline with all
    retries; `keek.Timeouts` has the defaults. Every call raises `keek.CallError`, as drawn in
    `keek.errors`, and `keek.ClientStateError` when the client is closed. Where 0 or an empty
    string is the default of a parameter, the server chooses.
    """

    # -- feeds ------------------------------------------------------------------------------------
    def list_feed(
        self, user_id: str, *, page_size: int = 0, page_token: str = "", timeout_s: float | None = None
    ) -> ListFeedResponse:
        """One page of a user's feed; a user who is not known gets trending and popular videos."""
        request = ListFeedRequest(user_id=user_id, page_size=page_size, page_token=page_token)
        return self._call(self._stubs.feed.ListFeed, request, timeout_s, self._timeouts.list_feed_s)

    def feed_pages(
        self, user_id: str, *, page_size: int = 0, page_token: str = "", timeout_s: float | None = None
    ) -> Iterator[ListFeedResponse]:
        """Page after page until nothing is left, each asked for when it is needed.

        No video repeats. `timeout_s` is for one page.
        """
        request = ListFeedRequest(user_id=user_id, page_size=page_size, page_token=page_token)
        return self._pages(self._stubs.feed.ListFeed, request, timeout_s, self._timeouts.list_feed_s)

    def stream_feed(
        self,
        user_id: str,
        *,
        page_count: int = 0,
        page_size: int = 0,
        page_token: str = "",
        timeout_s: float | None = None,
    ) -> Generator[StreamFeedResponse, None, None]:
        """Pages as the server sends them, in one call that starts with the first `next()`.

        When it fails after some pages, go on with the `next_page_token` of the last one. To stop
        early, call the generator's `close()`, or drop it.
        """
        request = StreamFeedRequest(
            user_id=user_id, page_count=page_count, page_size=page_size, page_token=page_token
        )
        return self._stream(self._stubs.feed.StreamFeed, request, timeout_s, self._timeouts.stream_feed_s)

    def explain_feed(
        self,
        user_id: str,
        video_ids: Iterable[str] = (),
        *,
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> ExplainFeedResponse:
        """What every stage did for a user's feed, and why each of `video_ids` is in it or absent."""
        request = ExplainFeedRequest(user_id=user_id, page_size=page_size, video_ids=video_ids)
        return self._call(self._stubs.feed.ExplainFeed, request, timeout_s, self._timeouts.explain_feed_s)

    # -- interactions -----------------------------------------------------------------------------
    def record_interaction(
        self,
        user_id: str,
        video_id: str,
        kind: InteractionKind.ValueType,
        *,
        event_id: str | None = None,
        event_time: dt.datetime | None = None,
        region: str = "",
        wait_for_feed: bool = False,
        timeout_s: float | None = None,
    ) -> Recorded:
        """Records one interaction; it is durable when this returns.

        The `event_id` is made once a call, so that its retries are harmless. Give your own to
        repeat a call that failed.

        Raises:
            NotFoundError: The video is not known; nothing is stored.
            ValueError: `event_time` has no time zone.
        """
        request = RecordInteractionRequest(
            interaction=interaction(
                user_id, video_id, kind, event_id=event_id, event_time=event_time, region=region
            ),
            wait_for_feed=wait_for_feed,
        )
        response = self._call(
            self._stubs.interactions.RecordInteraction,
            request,
            timeout_s,
            self._timeouts.record_interaction_s,
        )
        return recorded(request, response)

    def view(self, user_id: str, video_id: str, **options: Unpack[RecordOptions]) -> Recorded:
        """`record_interaction` of a view."""
        return self.record_interaction(user_id, video_id, InteractionKind.INTERACTION_KIND_VIEW, **options)

    def like(self, user_id: str, video_id: str, **options: Unpack[RecordOptions]) -> Recorded:
        """`record_interaction` of a like."""
        return self.record_interaction(user_id, video_id, InteractionKind.INTERACTION_KIND_LIKE, **options)

    def save(self, user_id: str, video_id: str, **options: Unpack[RecordOptions]) -> Recorded:
        """`record_interaction` of a save."""
        return self.record_interaction(user_id, video_id, InteractionKind.INTERACTION_KIND_SAVE, **options)

    def share(self, user_id: str, video_id: str, **options: Unpack[RecordOptions]) -> Recorded:
        """`record_interaction` of a share."""
        return self.record_interaction(user_id, video_id, InteractionKind.INTERACTION_KIND_SHARE, **options)

    def skip(self, user_id: str, video_id: str, **options: Unpack[RecordOptions]) -> Recorded:
        """`record_interaction` of a skip."""
        return self.record_interaction(user_id, video_id, InteractionKind.INTERACTION_KIND_SKIP, **options)

    def record_interactions(
        self, interactions: Iterable[Interaction], *, timeout_s: float | None = None
    ) -> RecordInteractionsResponse:
        """Records many, in batches on one stream; make them with `keek.interaction`.

        After an error, call again with the same interactions: what had been stored is recognised
        by its `event_id`. The iterable is read by another thread, as the server takes it. What
        it raises is raised here; batches that were full before may be stored.
        """
        outgoing = Outgoing()
        requests = outgoing.requests(interactions)
        try:
            return self._call(
                self._stubs.interactions.RecordInteractions,
                requests,
                timeout_s,
                self._timeouts.record_interactions_s,
            )
        finally:
            if outgoing.error is not None:
                raise outgoing.error

    # -- videos -----------------------------------------------------------------------------------
    def get_video(self, video_id: str, *, timeout_s: float | None = None) -> Video:
        """One video's metadata.

        Raises:
            NotFoundError: The video is not known.
        """
        request = GetVideoRequest(video_id=video_id)
        response = self._call(self._stubs.videos.GetVideo, request, timeout_s, self._timeouts.get_video_s)
        return response.video

    def list_videos(
        self,
        *,
        owner_id: str = "",
        page_size: int = 0,
        page_token: str = "",
        timeout_s: float | None = None,
    ) -> ListVideosResponse:
        """One page of the catalogue, ordered by `video_id`."""
        request = ListVideosRequest(owner_id=owner_id, page_size=page_size, page_token=page_token)
        return self._call(self._stubs.videos.ListVideos, request, timeout_s, self._timeouts.list_videos_s)

    def iter_videos(
        self, *, owner_id: str = "", page_size: int = 1000, timeout_s: float | None = None
    ) -> Iterator[Video]:
        """All videos, page after page; `timeout_s` is for one page."""
        request = ListVideosRequest(owner_id=owner_id, page_size=page_size)
        pages = self._pages(self._stubs.videos.ListVideos, request, timeout_s, self._timeouts.list_videos_s)
        return (video for page in pages for video in page.videos)

    def import_videos(
        self, videos: Iterable[Video], *, timeout_s: float | None = None
    ) -> ImportVideosResponse:
        """Creates or replaces videos in batches, one transaction each; gives the sums.

        After an error the batches before it are stored; importing them again changes nothing.
        `timeout_s` is for one batch.
        """
        method = self._stubs.videos.ImportVideos
        total = ImportVideosResponse()
        for batch in batches(videos):
            request = ImportVideosRequest(videos=batch)
            done = self._call(method, request, timeout_s, self._timeouts.import_videos_s)
            total.created_count += done.created_count
            total.updated_count += done.updated_count
        return total

    # -- trending and health ----------------------------------------------------------------------
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
            CallError: FAILED_PRECONDITION; the server keeps no lists by tag or by region.
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
