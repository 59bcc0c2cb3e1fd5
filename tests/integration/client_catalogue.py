"""The catalogue of the clients' test server: videos, resumable uploads, and a search among them."""

# ruff: noqa: N802 - the names are gRPC methods

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
from client_faults import Fault, Faults, bad_request, error_info, page_of, status_metadata
from google.protobuf.message import Message

from keek.v1 import search_service_pb2, search_service_pb2_grpc, video_service_pb2, video_service_pb2_grpc
from keek.v1.video_service_pb2 import VideoState

PART_BYTES = 384 << 10
"""What is durable of an upload that was cut off is a multiple of this."""

BAD_FILE = b"no video"
"""A file that begins with this is rejected as TRUNCATED."""


@dataclass(slots=True)
class Received:
    """What has arrived of one upload."""

    header: video_service_pb2.UploadHeader
    content: bytearray = field(default_factory=bytearray)
    state: VideoState.ValueType = VideoState.VIDEO_STATE_UPLOADING
    reason: str = ""

    def forget_the_last_part(self) -> None:
        """What a server that is cut off loses."""
        if len(self.content) < self.header.size_bytes:
            del self.content[len(self.content) // PART_BYTES * PART_BYTES :]


async def _refuse(
    context: Any, code: grpc.StatusCode, message: str, reason: str, *details: Message
) -> NoReturn:
    fault = Fault(code, message, [error_info(reason), *details])
    await context.abort(code, message, status_metadata(fault))
    raise AssertionError


@dataclass(slots=True)
class Videos(video_service_pb2_grpc.VideoServiceServicer):
    """A catalogue in memory. Uploads are kept in parts of PART_BYTES, as durable storage would keep them."""

    faults: Faults
    stored: dict[str, video_service_pb2.Video] = field(default_factory=dict)
    uploads: dict[str, Received] = field(default_factory=dict)
    """By upload_id."""
    requests_done: dict[str, str] = field(default_factory=dict)
    """The method of each request_id."""
    import_delay_s: float = 0.0
    importing: int = 0
    """Batches that are being imported, and the most that ever were."""
    most_importing: int = 0

    async def GetVideo(self, request: Any, context: Any) -> video_service_pb2.GetVideoResponse:
        await self.faults.strike("GetVideo", request, context)
        if request.video_id not in self.stored:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no video {request.video_id!r}")
        return video_service_pb2.GetVideoResponse(video=self.stored[request.video_id])

    async def ListVideos(self, request: Any, context: Any) -> video_service_pb2.ListVideosResponse:
        await self.faults.strike("ListVideos", request, context)
        own = [
            name for name, video in sorted(self.stored.items()) if request.owner_id in ("", video.owner_id)
        ]
        names, token = page_of(own, request.page_size, request.page_token)
        return video_service_pb2.ListVideosResponse(
            videos=[self.stored[name] for name in names], next_page_token=token
        )

    async def ImportVideos(self, request: Any, context: Any) -> video_service_pb2.ImportVideosResponse:
        await self.faults.strike("ImportVideos", request, context)
        too_long = {
            f"videos[{place}].duration_s": "must be at most 86400"
            for place, video in enumerate(request.videos)
            if video.duration_s > 86400
        }
        if too_long:
            fault = Fault(grpc.StatusCode.INVALID_ARGUMENT, "bad videos", [bad_request(**too_long)])
            await context.abort(fault.code, fault.message, status_metadata(fault))
        self.importing += 1
        self.most_importing = max(self.most_importing, self.importing)
        try:
            await asyncio.sleep(self.import_delay_s)
        finally:
            self.importing -= 1
        created = sum(video.video_id not in self.stored for video in request.videos)
        self.stored.update((video.video_id, video) for video in request.videos)
        return video_service_pb2.ImportVideosResponse(
            created_count=created, updated_count=len(request.videos) - created
        )

    # -- uploads ----------------------------------------------------------------------------------
    async def GetUpload(self, request: Any, context: Any) -> video_service_pb2.GetUploadResponse:
        await self.faults.strike("GetUpload", request, context)
        upload = self.uploads.get(request.upload_id)
        is_deleted = (
            upload is not None
            and upload.state == VideoState.VIDEO_STATE_READY
            and upload.header.video.video_id not in self.stored
        )
        if upload is None or is_deleted:
            await _refuse(context, grpc.StatusCode.NOT_FOUND, "no such upload", "NOT_FOUND")
        return video_service_pb2.GetUploadResponse(
            video_id=upload.header.video.video_id,
            state=upload.state,
            received_bytes=len(upload.content),
            size_bytes=upload.header.size_bytes,
            reason=upload.reason,
        )

    async def UploadVideo(self, requests: Any, context: Any) -> video_service_pb2.UploadVideoResponse:
        parts = aiter(requests)
        header = (await anext(parts)).header
        await self.faults.strike("UploadVideo", header, context)
        upload = self.uploads.setdefault(header.upload_id, Received(header))
        await self._receive(upload, header.offset_bytes, parts, context)
        if self.faults.refused_uploads:
            fault = self.faults.refused_uploads.popleft()
            assert fault.code is not None
            await context.abort(fault.code, fault.message, status_metadata(fault))
        await self._decode(upload, context)
        if self.faults.lost_acknowledgements:
            self.faults.lost_acknowledgements -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return video_service_pb2.UploadVideoResponse(video=await self._found(header.video.video_id, context))

    async def _receive(self, upload: Received, offset: int, parts: Any, context: Any) -> None:
        if offset > len(upload.content):
            await _refuse(context, grpc.StatusCode.OUT_OF_RANGE, "bytes are missing", "BYTES_MISSING")
        cut_after = self.faults.cut_uploads.popleft() if self.faults.cut_uploads else None
        arrived = 0
        try:
            async for request in parts:
                # What is there already is passed over.
                upload.content += request.chunk[max(0, len(upload.content) - offset) :]
                offset += len(request.chunk)
                arrived += len(request.chunk)
                self.faults.uploaded_bytes += len(request.chunk)
                if cut_after is not None and arrived >= cut_after[0]:
                    # First: the client may ask how far it got before this goes on.
                    upload.forget_the_last_part()
                    await context.abort(cut_after[1].code, "cut off", status_metadata(cut_after[1]))
                await asyncio.sleep(self.faults.pause_s)
                while self._is_held(upload):
                    await asyncio.sleep(0.01)
        finally:
            upload.forget_the_last_part()
        if len(upload.content) < upload.header.size_bytes:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "the stream ended", "INCOMPLETE")

    def _is_held(self, upload: Received) -> bool:
        held_at = self.faults.hold_uploads_at
        return held_at is not None and len(upload.content) >= held_at

    async def _decode(self, upload: Received, context: Any) -> None:
        video_id = upload.header.video.video_id
        if upload.content.startswith(BAD_FILE):
            upload.state, upload.reason = VideoState.VIDEO_STATE_REJECTED, "the file ends too early"
            bad = bad_request(content=upload.reason)
            code = grpc.StatusCode.INVALID_ARGUMENT
            await _refuse(context, code, f"content: {upload.reason}", "TRUNCATED", bad)
        if upload.state == VideoState.VIDEO_STATE_UPLOADING:
            if self.stored.get(video_id, video_service_pb2.Video()).original_url:
                await _refuse(context, grpc.StatusCode.ALREADY_EXISTS, "the video has a file", "HAS_FILE")
            upload.state = VideoState.VIDEO_STATE_READY
            # Its bytes are the video's now; a deleted one does not come back under this upload_id.
            stored = video_service_pb2.Video(
                state=upload.state, width=720, height=1280, original_url=f"file:///{video_id}"
            )
            stored.MergeFrom(upload.header.video)
            self.stored[video_id] = stored

    async def WatchVideo(
        self, request: Any, context: Any
    ) -> AsyncIterator[video_service_pb2.WatchVideoResponse]:
        """Of a video DECODING, EMBEDDING and READY; of a rejected upload DECODING and REJECTED."""
        await self.faults.strike("WatchVideo", request, context)
        bad = [
            upload
            for upload in self.uploads.values()
            if upload.header.video.video_id == request.video_id and upload.reason
        ]
        if request.video_id not in self.stored and not bad:
            await _refuse(context, grpc.StatusCode.NOT_FOUND, "no such video", "NOT_FOUND")
        last = ["REJECTED"] if bad else ["EMBEDDING", "READY"]
        for name in ["DECODING", *last]:
            yield video_service_pb2.WatchVideoResponse(
                state=VideoState.Value(f"VIDEO_STATE_{name}"),
                reason=bad[0].reason if name == "REJECTED" else "",
            )
            await asyncio.sleep(self.faults.pause_s)

    # -- changes ----------------------------------------------------------------------------------
    async def CreateVideo(self, request: Any, context: Any) -> video_service_pb2.CreateVideoResponse:
        await self.faults.strike("CreateVideo", request, context)
        video_id = request.video.video_id
        if request.request_id not in self.requests_done:
            if self.stored.get(video_id, video_service_pb2.Video()).original_url:
                await _refuse(context, grpc.StatusCode.ALREADY_EXISTS, "the video has a file", "HAS_FILE")
            self.stored[video_id] = video_service_pb2.Video(original_url=request.source_url)
            self.stored[video_id].MergeFrom(request.video)
            self.requests_done[request.request_id] = "CreateVideo"
        return video_service_pb2.CreateVideoResponse(video=self.stored[video_id])

    async def UpdateVideo(self, request: Any, context: Any) -> video_service_pb2.UpdateVideoResponse:
        await self.faults.strike("UpdateVideo", request, context)
        stored = await self._found(request.video.video_id, context)
        every = ("owner_id", "tags", "duration_s", "title", "language", "region")
        for name in request.update_mask.paths or every:
            stored.ClearField(name)
            only = video_service_pb2.Video()
            only.CopyFrom(request.video)
            for other, _ in request.video.ListFields():
                if other.name != name:
                    only.ClearField(other.name)
            stored.MergeFrom(only)
        return video_service_pb2.UpdateVideoResponse(video=stored)

    async def DeleteVideo(self, request: Any, context: Any) -> video_service_pb2.DeleteVideoResponse:
        await self.faults.strike("DeleteVideo", request, context)
        if request.request_id not in self.requests_done:
            await self._found(request.video_id, context)
            del self.stored[request.video_id]
            self.requests_done[request.request_id] = "DeleteVideo"
        if self.faults.lost_acknowledgements:
            self.faults.lost_acknowledgements -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return video_service_pb2.DeleteVideoResponse()

    async def _found(self, video_id: str, context: Any) -> video_service_pb2.Video:
        if video_id not in self.stored:
            await _refuse(context, grpc.StatusCode.NOT_FOUND, f"no video {video_id!r}", "NOT_FOUND")
        return self.stored[video_id]


@dataclass(slots=True)
class Search(search_service_pb2_grpc.SearchServiceServicer):
    """Finds every video of `ids`, in order, whatever is asked."""

    faults: Faults
    ids: list[str]
    clip_untrained: bool = False

    def _page(self, request: Any) -> tuple[list[search_service_pb2.FoundVideo], str]:
        names, token = page_of(self.ids, request.page_size, request.page_token)
        return [search_service_pb2.FoundVideo(video_id=name, score=0.25) for name in names], token

    async def SearchVideos(self, request: Any, context: Any) -> search_service_pb2.SearchVideosResponse:
        await self.faults.strike("SearchVideos", request, context)
        videos, token = self._page(request)
        return search_service_pb2.SearchVideosResponse(
            videos=videos,
            next_page_token=token,
            release_id="r1",
            clip_model="ViT-B-32",
            clip_untrained=self.clip_untrained,
        )

    async def ListSimilarVideos(
        self, request: Any, context: Any
    ) -> search_service_pb2.ListSimilarVideosResponse:
        await self.faults.strike("ListSimilarVideos", request, context)
        videos, token = self._page(request)
        return search_service_pb2.ListSimilarVideosResponse(
            videos=videos, next_page_token=token, release_id="r1"
        )

    async def FindAudience(self, request: Any, context: Any) -> search_service_pb2.FindAudienceResponse:
        await self.faults.strike("FindAudience", request, context)
        answer = search_service_pb2.FindAudienceResponse
        users = [f"u{number}" for number in range(25)]
        names, token = page_of(users, request.page_size, request.page_token)
        members = [answer.Member(user_id=name, score=1.5) for name in names]
        return answer(members=members, next_page_token=token, release_id="r1")
