"""SearchService: decode, call, encode."""

from collections.abc import Sequence
from typing import TypeVar

from keek.v1 import search_service_pb2 as pb
from keek.v1 import search_service_pb2_grpc
from keek_server.errors import InvalidArgumentError
from keek_server.rpc.guard import Context
from keek_server.rpc.tokens import decode_offset, encode_token
from keek_server.rpc.video_filter import decode_filter
from keek_server.search.finder import LIMIT, Finder, Found

_DEFAULT_PAGE_SIZE = 20

Hit = TypeVar("Hit")


class SearchServicer(search_service_pb2_grpc.SearchServiceServicer):
    """See proto/keek/v1/search_service.proto."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    async def SearchVideos(
        self, request: pb.SearchVideosRequest, _context: Context
    ) -> pb.SearchVideosResponse:
        """One page of look-alikes."""
        page = _Page(request.page_size, request.page_token)
        found = await self._look_alikes(request, page.end)
        clip = found.serving.clip
        return pb.SearchVideosResponse(
            videos=_encode(page.of(found.scores)),
            next_page_token=page.next_token(found.scores),
            release_id=found.serving.release.id,
            clip_model=clip.record.clip_model if clip else "",
            clip_untrained=clip is not None and clip.record.untrained,
        )

    async def ListSimilarVideos(
        self, request: pb.ListSimilarVideosRequest, _context: Context
    ) -> pb.ListSimilarVideosResponse:
        """One page of videos that the same people like."""
        page = _Page(request.page_size, request.page_token)
        found = await self._finder.similar(request.video_id, decode_filter(request.filter), page.end)
        return pb.ListSimilarVideosResponse(
            videos=_encode(page.of(found.scores)),
            next_page_token=page.next_token(found.scores),
            release_id=found.serving.release.id,
        )

    async def FindAudience(
        self, request: pb.FindAudienceRequest, _context: Context
    ) -> pb.FindAudienceResponse:
        """One page of users."""
        page = _Page(request.page_size, request.page_token)
        found = await self._finder.audience(request.video_id, page.end)
        members = (
            pb.FindAudienceResponse.Member(user_id=user_id, score=score)
            for user_id, score in page.of(found.scores)
        )
        return pb.FindAudienceResponse(
            members=members,
            next_page_token=page.next_token(found.scores),
            release_id=found.serving.release.id,
        )

    async def _look_alikes(self, request: pb.SearchVideosRequest, count: int) -> Found:
        filter_ = decode_filter(request.filter)
        match request.WhichOneof("query"):
            case "text" if request.text.strip():
                return await self._finder.by_text(request.text, filter_, count)
            case "image" if request.image:
                return await self._finder.by_image(request.image, filter_, count)
            case "video_id" if request.video_id:
                return await self._finder.by_video(request.video_id, filter_, count)
            case _:
                raise InvalidArgumentError.of("query", "text, image or video_id is required")


class _Page:
    """Which part of a ranking is asked for."""

    def __init__(self, size: int, token: str) -> None:
        self._start = decode_offset(token, LIMIT)
        self.end = min(self._start + (size or _DEFAULT_PAGE_SIZE), LIMIT)

    def of(self, ranking: Sequence[Hit]) -> Sequence[Hit]:
        """That part of a ranking down to `end`."""
        return ranking[self._start : self.end]

    def next_token(self, ranking: Sequence[Hit]) -> str:
        """For the page behind it; empty when this is the last."""
        more = len(ranking) >= self.end and self._start < self.end < LIMIT
        return encode_token(str(self.end)) if more else ""


def _encode(hits: Sequence[tuple[str, float]]) -> list[pb.FoundVideo]:
    return [pb.FoundVideo(video_id=video_id, score=score) for video_id, score in hits]
