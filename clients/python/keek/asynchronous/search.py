"""Calls of the SearchService."""

from typing import Unpack

from keek.asynchronous.connection import AsyncConnection
from keek.queries import SearchOptions, search_request, similar_request
from keek.v1.search_service_pb2 import (
    FindAudienceRequest,
    FindAudienceResponse,
    ListSimilarVideosResponse,
    SearchVideosResponse,
)


class SearchCalls(AsyncConnection):
    """Feature of `keek.aio.Client`."""

    async def search_videos(
        self, text: str = "", *, image: bytes = b"", video_id: str = "", **options: Unpack[SearchOptions]
    ) -> SearchVideosResponse:
        """One page of the videos that look like a text, an image or another video, best first.

        When the response says `clip_untrained`, the results mean nothing.

        Args:
            text: Free text, at most 1,024 bytes.
            image: A JPEG, PNG or WebP file, at most 8 MiB.
            video_id: A video that has a clip vector.
            options: As `keek.SearchOptions` says.

        Raises:
            ValueError: Not exactly one query is given.
            NotFoundError: The query is a video that is not known or has no clip vector.
            FailedPreconditionError: The active release has no CLIP.
        """
        request = search_request(text, image, video_id, options)
        return await self._call(
            self._stubs.search.SearchVideos,
            request,
            options.get("timeout_s"),
            self._timeouts.search_videos_s,
        )

    async def list_similar_videos(
        self, video_id: str, **options: Unpack[SearchOptions]
    ) -> ListSimilarVideosResponse:
        """One page of the videos that the same people like, best first.

        Raises:
            NotFoundError: The video is not in the release.
        """
        request = similar_request(video_id, options)
        return await self._call(
            self._stubs.search.ListSimilarVideos,
            request,
            options.get("timeout_s"),
            self._timeouts.list_similar_videos_s,
        )

    async def find_audience(
        self, video_id: str, *, page_size: int = 0, page_token: str = "", timeout_s: float | None = None
    ) -> FindAudienceResponse:
        """One page of the users whose vectors like a video best.

        Raises:
            NotFoundError: The video is not in the release.
        """
        request = FindAudienceRequest(video_id=video_id, page_size=page_size, page_token=page_token)
        return await self._call(
            self._stubs.search.FindAudience, request, timeout_s, self._timeouts.find_audience_s
        )
