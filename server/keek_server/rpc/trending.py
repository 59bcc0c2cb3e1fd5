"""TrendingService: decode, call, encode."""

from keek.v1 import trending_service_pb2 as pb
from keek.v1 import trending_service_pb2_grpc
from keek_server.errors import InvalidArgumentError
from keek_server.interactions.projection import Projection
from keek_server.rpc.guard import Context
from keek_server.rpc.tokens import decode_token, encode_token

_DEFAULT_PAGE_SIZE = 10


class TrendingServicer(trending_service_pb2_grpc.TrendingServiceServicer):
    """See proto/keek/v1/trending_service.proto."""

    def __init__(self, projection: Projection) -> None:
        self._projection = projection

    async def ListTrending(
        self, request: pb.ListTrendingRequest, _context: Context
    ) -> pb.ListTrendingResponse:
        """One page, by rank at the time of asking."""
        position = decode_token(request.page_token) or "0"
        if not position.isdecimal():
            raise InvalidArgumentError.of("page_token", "is not a token of this service")
        limit = request.page_size or _DEFAULT_PAGE_SIZE
        videos = await self._projection.trending(int(position), limit)
        token = encode_token(str(int(position) + limit)) if len(videos) == limit else ""
        return pb.ListTrendingResponse(
            videos=[pb.TrendingVideo(video_id=video.video_id, score=video.score) for video in videos],
            next_page_token=token,
        )
