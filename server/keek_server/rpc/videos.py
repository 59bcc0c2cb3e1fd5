"""VideoService: decode, call, encode."""

from keek.v1 import video_service_pb2 as pb
from keek.v1 import video_service_pb2_grpc
from keek_server.clock import now_us
from keek_server.rpc.guard import Context
from keek_server.rpc.tokens import decode_token, encode_token
from keek_server.videos.catalogue import Catalogue, Video

_DEFAULT_PAGE_SIZE = 100


class VideoServicer(video_service_pb2_grpc.VideoServiceServicer):
    """See proto/keek/v1/video_service.proto."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def GetVideo(self, request: pb.GetVideoRequest, _context: Context) -> pb.GetVideoResponse:
        """One video."""
        return pb.GetVideoResponse(video=_encode(await self._catalogue.get(request.video_id)))

    async def ListVideos(self, request: pb.ListVideosRequest, _context: Context) -> pb.ListVideosResponse:
        """One page of videos, by id."""
        limit = request.page_size or _DEFAULT_PAGE_SIZE
        videos = await self._catalogue.list(
            after=decode_token(request.page_token), owner_id=request.owner_id, limit=limit
        )
        token = encode_token(videos[-1].video_id) if len(videos) == limit else ""
        return pb.ListVideosResponse(videos=map(_encode, videos), next_page_token=token)

    async def ImportVideos(
        self, request: pb.ImportVideosRequest, _context: Context
    ) -> pb.ImportVideosResponse:
        """Many videos in one transaction; of an id that stands twice, the last counts."""
        videos = {message.video_id: _decode(message) for message in request.videos}
        created = await self._catalogue.put(list(videos.values())) if videos else 0
        return pb.ImportVideosResponse(created_count=created, updated_count=len(videos) - created)


def _encode(video: Video) -> pb.Video:
    message = pb.Video(
        video_id=video.video_id,
        owner_id=video.owner_id,
        tags=video.tags,
        duration_s=video.duration_s,
        title=video.title,
    )
    message.create_time.FromMicroseconds(video.create_time_us)
    return message


def _decode(message: pb.Video) -> Video:
    has_time = message.HasField("create_time")
    return Video(
        message.video_id,
        message.owner_id,
        list(message.tags),
        message.duration_s,
        message.title,
        message.create_time.ToMicroseconds() if has_time else now_us(),
    )
