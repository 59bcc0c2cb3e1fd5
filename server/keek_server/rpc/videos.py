"""VideoService: decode, call, encode."""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing

import numpy as np

from keek.v1 import video_service_pb2 as pb
from keek.v1 import video_service_pb2_grpc
from keek_server.clock import now_us
from keek_server.errors import InvalidArgumentError
from keek_server.rpc.guard import Context
from keek_server.rpc.tokens import decode_token, encode_token
from keek_server.towers.contract import CLIP_DIMENSION
from keek_server.videos.catalogue import MUTABLE, Catalogue
from keek_server.videos.library import Library
from keek_server.videos.receiver import Receiver
from keek_server.videos.slots import timely
from keek_server.videos.video import ClipVector, Video
from keek_server.videos.watch import VideoWatch

_DEFAULT_PAGE_SIZE = 100
_CLIP_BYTES = 2 * CLIP_DIMENSION
_LENGTH_TOLERANCE = 0.01


class VideoServicer(video_service_pb2_grpc.VideoServiceServicer):
    """See proto/keek/v1/video_service.proto."""

    def __init__(
        self,
        catalogue: Catalogue,
        library: Library,
        receiver: Receiver,
        watch: VideoWatch,
        *,
        upload_idle_s: float,
    ) -> None:
        """
        Args:
            catalogue: Of all videos.
            library: For changes of it.
            receiver: For uploads.
            watch: Tells how far they are.
            upload_idle_s: How long the next message of an upload may take.
        """
        self._catalogue = catalogue
        self._library = library
        self._receiver = receiver
        self._watch = watch
        self._upload_idle_s = upload_idle_s

    async def GetVideo(self, request: pb.GetVideoRequest, _context: Context) -> pb.GetVideoResponse:
        """One video."""
        return pb.GetVideoResponse(video=_encode(await self._catalogue.get(request.video_id)))

    async def ListVideos(self, request: pb.ListVideosRequest, _context: Context) -> pb.ListVideosResponse:
        """One page of videos, by id."""
        limit = request.page_size or _DEFAULT_PAGE_SIZE
        videos = await self._catalogue.page(
            after=decode_token(request.page_token), owner_id=request.owner_id, limit=limit
        )
        token = encode_token(videos[-1].video_id) if len(videos) == limit else ""
        return pb.ListVideosResponse(videos=map(_encode, videos), next_page_token=token)

    async def ImportVideos(
        self, request: pb.ImportVideosRequest, _context: Context
    ) -> pb.ImportVideosResponse:
        """Many videos in one transaction; of an id that stands twice, the last counts."""
        messages = {message.video_id: message for message in request.videos}
        vectors = _clip_vectors(request)
        created = await self._library.add(list(map(_decode, messages.values())), vectors) if messages else 0
        return pb.ImportVideosResponse(created_count=created, updated_count=len(messages) - created)

    async def UploadVideo(
        self, requests: AsyncIterator[pb.UploadVideoRequest], _context: Context
    ) -> pb.UploadVideoResponse:
        """One call of an upload."""
        requests = timely(requests, self._upload_idle_s)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgumentError.of("header", "must be the first message")
        header = first.header
        video = await self._receiver.receive(
            uuid.UUID(header.upload_id),
            _decode(header.video),
            header.size_bytes,
            header.offset_bytes,
            _chunks(requests),
        )
        return pb.UploadVideoResponse(video=_encode(video))

    async def GetUpload(self, request: pb.GetUploadRequest, _context: Context) -> pb.GetUploadResponse:
        """How far an upload came."""
        upload, state = await self._watch.upload(uuid.UUID(request.upload_id))
        return pb.GetUploadResponse(
            video_id=upload.video_id,
            state=state.value,  # type: ignore[arg-type]  # numbered alike
            received_bytes=upload.received_bytes,
            size_bytes=upload.size_bytes,
            reason=upload.reason,
        )

    async def CreateVideo(self, request: pb.CreateVideoRequest, _context: Context) -> pb.CreateVideoResponse:
        """A video from where it lies."""
        video = await self._library.create(_decode(request.video), request.source_url, request.request_id)
        return pb.CreateVideoResponse(video=_encode(video))

    async def UpdateVideo(self, request: pb.UpdateVideoRequest, _context: Context) -> pb.UpdateVideoResponse:
        """New metadata."""
        names = tuple(request.update_mask.paths) or MUTABLE
        if unknown := [name for name in names if name not in MUTABLE]:
            raise InvalidArgumentError.of("update_mask", f"{unknown[0]!r} cannot be updated")
        video = _decode(request.video)
        changes = {name: getattr(video, name) for name in names}
        updated = await self._library.update(video.video_id, changes, request.request_id)
        return pb.UpdateVideoResponse(video=_encode(updated))

    async def DeleteVideo(self, request: pb.DeleteVideoRequest, _context: Context) -> pb.DeleteVideoResponse:
        """Gone from every feed."""
        await self._library.delete(request.video_id, request.request_id)
        return pb.DeleteVideoResponse()

    async def WatchVideo(
        self, request: pb.WatchVideoRequest, _context: Context
    ) -> AsyncGenerator[pb.WatchVideoResponse, None]:
        """The states of a video, until the last one."""
        # Closed at once: who is gone must not keep a place.
        async with aclosing(self._watch.follow(request.video_id)) as states:
            async for progress in states:
                yield pb.WatchVideoResponse(
                    state=progress.state.value,  # type: ignore[arg-type]
                    received_bytes=progress.received_bytes,
                    size_bytes=progress.size_bytes,
                    reason=progress.reason,
                )


async def _chunks(requests: AsyncIterator[pb.UploadVideoRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidArgumentError.of("chunk", "must be in every message behind the first")
        yield request.chunk


def _clip_vectors(request: pb.ImportVideosRequest) -> Mapping[str, ClipVector]:
    """Those that are given, checked all at once."""
    given = [(i, message) for i, message in enumerate(request.videos) if message.clip_vector]
    for i, message in given:
        if len(message.clip_vector) != _CLIP_BYTES:
            description = f"has {len(message.clip_vector)} bytes, {_CLIP_BYTES} are expected"
            raise InvalidArgumentError.of(f"videos[{i}].clip_vector", description)
    content = b"".join(message.clip_vector for _, message in given)
    vectors = np.frombuffer(content, "<f2").reshape(-1, CLIP_DIMENSION).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~(np.abs(lengths - 1) <= _LENGTH_TOLERANCE))  # NaN is wrong, too
    if len(wrong):
        description = f"has length {lengths[wrong[0]]:g}, not 1"
        raise InvalidArgumentError.of(f"videos[{given[wrong[0]][0]}].clip_vector", description)
    return {message.video_id: ClipVector(request.clip_model, message.clip_vector) for _, message in given}


def _encode(video: Video) -> pb.Video:
    message = pb.Video(
        video_id=video.video_id,
        owner_id=video.owner_id,
        tags=video.tags,
        duration_s=video.duration_s,
        title=video.title,
        state=video.state.value,  # type: ignore[arg-type]
        width=video.width,
        height=video.height,
        original_url=video.original_url,
        poster_url=video.poster_url,
        language=video.language,
        region=video.region,
    )
    message.create_time.FromMicroseconds(video.create_time_us)
    return message


def _decode(message: pb.Video) -> Video:
    """The metadata; what the server sets is left out."""
    has_time = message.HasField("create_time")
    return Video(
        message.video_id,
        message.owner_id,
        list(message.tags),
        message.duration_s,
        message.title,
        message.create_time.ToMicroseconds() if has_time else now_us(),
        language=message.language,
        region=message.region,
    )
