"""TrendingService: decode, call, encode."""

import math
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing

from keek.v1 import trending_service_pb2 as pb
from keek.v1 import trending_service_pb2_grpc
from keek_server.errors import InvalidArgumentError
from keek_server.interactions.kinds import EVERYTHING, TrendingScope
from keek_server.interactions.trending import RISING_CANDIDATES, Position, Trending, TrendingVideo
from keek_server.interactions.watch import WATCHED, TrendingWatch
from keek_server.rpc.guard import Context
from keek_server.rpc.tokens import decode_offset, decode_token, encode_token
from keek_server.videos.catalogue import Catalogue

_DEFAULT_PAGE_SIZE = 10
_RISING = pb.TrendingRanking.TRENDING_RANKING_RISING


class TrendingServicer(trending_service_pb2_grpc.TrendingServiceServicer):
    """See proto/keek/v1/trending_service.proto."""

    def __init__(self, trending: Trending, catalogue: Catalogue, watch: TrendingWatch) -> None:
        self._trending = trending
        self._known = catalogue.briefs
        self._watch = watch

    async def ListTrending(
        self, request: pb.ListTrendingRequest, _context: Context
    ) -> pb.ListTrendingResponse:
        """One page."""
        limit = request.page_size or _DEFAULT_PAGE_SIZE
        scope = self._scope(request)
        if request.ranking == _RISING:
            offset = decode_offset(request.page_token, RISING_CANDIDATES)
            videos = await self._trending.rising(limit, known=self._known, scope=scope, offset=offset)
            more = len(videos) == limit and offset + limit < RISING_CANDIDATES
            token = encode_token(str(offset + limit)) if more else ""
        else:
            after = _decode_position(request.page_token)
            page = await self._trending.top(limit, known=self._known, scope=scope, after=after)
            videos = page.videos
            token = "" if page.is_last else _encode_position(page.end)
        return pb.ListTrendingResponse(videos=_encode(videos), next_page_token=token)

    async def WatchTrending(
        self, request: pb.WatchTrendingRequest, _context: Context
    ) -> AsyncIterator[pb.WatchTrendingResponse]:
        """The head of a list, whenever it changes."""
        scope = self._scope(request)
        is_rising = request.ranking == _RISING

        async def read() -> list[TrendingVideo]:
            if is_rising:
                return await self._trending.rising(WATCHED, known=self._known, scope=scope)
            return (await self._trending.top(WATCHED, known=self._known, scope=scope)).videos

        before: dict[str, None] = {}
        name = f"{'rising' if is_rising else 'top'} {scope}"
        limit = request.page_size or _DEFAULT_PAGE_SIZE
        # Closed at once: who is gone must not keep a place.
        async with aclosing(self._watch.lists(name, read, limit)) as lists:
            async for videos in lists:
                now = dict.fromkeys(video.video_id for video in videos)
                yield pb.WatchTrendingResponse(
                    videos=_encode(videos),
                    entered_video_ids=[video_id for video_id in now if video_id not in before],
                    left_video_ids=[video_id for video_id in before if video_id not in now],
                )
                before = now

    def _scope(self, request: pb.ListTrendingRequest | pb.WatchTrendingRequest) -> str:
        kind = request.WhichOneof("scope")
        if kind is None:
            return EVERYTHING
        return self._trending.scope(TrendingScope(kind), getattr(request, kind))


def _encode(videos: Iterable[TrendingVideo]) -> list[pb.TrendingVideo]:
    return [pb.TrendingVideo(video_id=video.video_id, score=video.score) for video in videos]


def _encode_position(position: Position) -> str:
    return encode_token(f"{position.log2_score.hex()} {position.ties}")


def _decode_position(token: str) -> Position:
    if not token:
        return Position()
    score, _, ties = decode_token(token).partition(" ")
    try:
        position = Position(float.fromhex(score), int(ties))
    except (ValueError, OverflowError) as error:
        raise _not_a_token() from error
    if not math.isfinite(position.log2_score) or not 0 <= position.ties < 2**31:
        raise _not_a_token()
    return position


def _not_a_token() -> InvalidArgumentError:
    return InvalidArgumentError.of("page_token", "is not a token of this service")
