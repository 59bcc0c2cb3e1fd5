"""FeedService: decode, call, encode."""

from collections.abc import AsyncIterator
from typing import TypeVar

from keek.v1 import feed_service_pb2 as pb
from keek.v1 import feed_service_pb2_grpc
from keek_server.feed.explain import explain
from keek_server.feed.paging import SESSION_LIMIT, PageToken
from keek_server.feed.pipeline import FeedPipeline
from keek_server.feed.types import Candidate, Degradation, FeedPage, FeedQuery, SlotShare
from keek_server.retrieval.ids import hash_id
from keek_server.rpc.guard import Context
from keek_server.rpc.video_filter import decode_filter
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.filters import ANY_VIDEO

_DEFAULT_PAGE_SIZE = 10

Page = TypeVar("Page", pb.ListFeedResponse, pb.StreamFeedResponse)
Request = pb.ListFeedRequest | pb.StreamFeedRequest | pb.ExplainFeedRequest


class FeedServicer(feed_service_pb2_grpc.FeedServiceServicer):
    """See proto/keek/v1/feed_service.proto."""

    def __init__(self, pipeline: FeedPipeline, catalogue: Catalogue, *, deadline_s: float) -> None:
        self._pipeline = pipeline
        self._catalogue = catalogue
        self._deadline_s = deadline_s

    async def ListFeed(self, request: pb.ListFeedRequest, context: Context) -> pb.ListFeedResponse:
        """One page."""
        served = _served(request.page_token, request.user_id)
        page = await self._page(request, served, context)
        self._pipeline.answered(page)
        return _encode(page, pb.ListFeedResponse)

    async def StreamFeed(
        self, request: pb.StreamFeedRequest, context: Context
    ) -> AsyncIterator[pb.StreamFeedResponse]:
        """Pages, one message each."""
        served = _served(request.page_token, request.user_id)
        for _ in range(request.page_count or 1):
            page = await self._page(request, served, context)
            response = _encode(page, pb.StreamFeedResponse)
            yield response
            self._pipeline.answered(page)
            if not response.next_page_token:
                return
            served += tuple(hash_id(item.video_id) for item in page.selection.items)

    async def ExplainFeed(self, request: pb.ExplainFeedRequest, context: Context) -> pb.ExplainFeedResponse:
        """The page that ListFeed would give, and why."""
        page = await self._page(request, (), context)
        known = await self._catalogue.briefs(request.video_ids)
        encoded = _encode(page, pb.ListFeedResponse)
        response = pb.ExplainFeedResponse(
            items=encoded.items,
            release_id=encoded.release_id,
            history_video_ids=[entry.video_id for entry in page.context.history],
            slot_shares=encoded.slot_shares,
            degradations=encoded.degradations,
        )
        for source in page.sources:
            trace = response.sources.add(
                source=source.source, candidate_count=source.candidate_count, error=source.error
            )
            trace.elapsed.FromNanoseconds(int(source.elapsed_s * 1e9))
        for filter_ in page.filters:
            response.filters.add(
                name=filter_.name, kept_count=filter_.kept_count, removed_count=filter_.removed_count
            )
        for verdict in explain(page, request.video_ids, known.keys()):
            response.verdicts.add(
                video_id=verdict.video_id, served=verdict.served, stage=verdict.stage, detail=verdict.detail
            )
        return response

    async def _page(self, request: Request, served: tuple[int, ...], context: Context) -> FeedPage:
        remaining_s = context.time_remaining()
        deadline_s = self._deadline_s if remaining_s is None else min(remaining_s, self._deadline_s)
        query = FeedQuery(
            request.user_id,
            min(request.page_size or _DEFAULT_PAGE_SIZE, SESSION_LIMIT - len(served)),
            deadline_s,
            served,
            decode_filter(request.filter) if request.HasField("filter") else ANY_VIDEO,
            frozenset(map(hash_id, request.blocked_owner_ids)),
        )
        return await self._pipeline.run(query)


def _served(page_token: str, user_id: str) -> tuple[int, ...]:
    return PageToken.decode(page_token, user_id).served if page_token else ()


def _encode(page: FeedPage, response_type: type[Page]) -> Page:
    query, items = page.context.query, page.selection.items
    release_id, arm = page.context.serving.release.id, page.context.assignment.label
    response = response_type(
        items=[encode_item(item, release_id, arm) for item in items],
        release_id=release_id,
        slot_shares=[_encode_share(share) for share in page.selection.shares],
        degradations=[encode_degradation(degradation) for degradation in page.context.degradations],
    )
    served = query.served + tuple(hash_id(item.video_id) for item in items)
    if len(items) == query.page_size and len(served) < SESSION_LIMIT:
        response.next_page_token = PageToken(query.user_id, release_id, served).encode()
    return response


def _encode_share(share: SlotShare) -> pb.SlotShare:
    return pb.SlotShare(
        source=share.source,  # type: ignore[arg-type]
        quota_count=share.quota_count,
        served_count=share.served_count,
    )


def encode_item(item: Candidate, release_id: str, arm: str = "") -> pb.FeedItem:
    """An item of a feed that the release made, and an arm shaped."""
    return pb.FeedItem(
        video_id=item.video_id,
        source=item.source,  # type: ignore[arg-type]  # numbered alike
        score=item.score,
        release_id=release_id,
        arm=arm,
    )


def encode_degradation(degradation: Degradation) -> pb.Degradation:
    """What a feed lacks."""
    return pb.Degradation(
        source=degradation.source,  # type: ignore[arg-type]
        reason=degradation.reason,
        replaced_by=degradation.replaced_by,  # type: ignore[arg-type]
    )
