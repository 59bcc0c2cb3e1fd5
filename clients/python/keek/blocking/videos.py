"""Calls of the VideoService on metadata."""

from collections.abc import Iterable, Iterator

from keek.blocking.connection import BlockingConnection
from keek.messages import batches
from keek.queries import create_request, delete_request, update_request
from keek.v1.video_service_pb2 import (
    GetVideoRequest,
    ImportVideosRequest,
    ImportVideosResponse,
    ListVideosRequest,
    ListVideosResponse,
    Video,
)


class VideoCalls(BlockingConnection):
    """Feature of `keek.Client`."""

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
        self,
        videos: Iterable[Video],
        *,
        clip_model: str = "",
        timeout_s: float | None = None,
    ) -> ImportVideosResponse:
        """Creates or replaces videos in batches, one transaction each; gives the sums.

        After an error the batches before it are stored; importing them again changes nothing.
        `timeout_s` is for one batch.

        Args:
            clip_model: The CLIP that the videos' clip vectors are from, as a release's manifest
                names it; empty means the CLIP of whatever release reads them.
        """
        method = self._stubs.videos.ImportVideos
        total = ImportVideosResponse()
        for batch in batches(videos):
            request = ImportVideosRequest(videos=batch, clip_model=clip_model)
            done = self._call(method, request, timeout_s, self._timeouts.import_videos_s)
            total.created_count += done.created_count
            total.updated_count += done.updated_count
        return total

    def create_video(
        self, video: Video, source_url: str, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> Video:
        """Has the server fetch a video from a path or URL under one of the prefixes that it allows.

        Gives the video when it is durable. `video_id` is made when it is not given; `request_id`
        is made once a call, so that its retries are harmless. Give your own to repeat a call that
        failed.

        Raises:
            AlreadyExistsError: The video has a file.
            InvalidArgumentError: It is no video that can be served, `reason` says why; or the
                server may not fetch from there.
        """
        request = create_request(video, source_url, request_id)
        response = self._call(
            self._stubs.videos.CreateVideo, request, timeout_s, self._timeouts.create_video_s
        )
        return response.video

    def update_video(
        self,
        video: Video,
        fields: Iterable[str] = (),
        *,
        request_id: str | None = None,
        timeout_s: float | None = None,
    ) -> Video:
        """Changes metadata; gives the video as it is then.

        Args:
            fields: Of `owner_id`, `tags`, `duration_s`, `title`, `language` and `region`; empty means all
                of them.
            request_id: As in `create_video`.

        Raises:
            NotFoundError: The video is not known.
        """
        request = update_request(video, fields, request_id)
        response = self._call(
            self._stubs.videos.UpdateVideo, request, timeout_s, self._timeouts.update_video_s
        )
        return response.video

    def delete_video(
        self, video_id: str, *, request_id: str | None = None, timeout_s: float | None = None
    ) -> None:
        """Removes a video from every feed, and its file.

        Raises:
            NotFoundError: The video is not known.
        """
        request = delete_request(video_id, request_id)
        self._call(self._stubs.videos.DeleteVideo, request, timeout_s, self._timeouts.delete_video_s)
