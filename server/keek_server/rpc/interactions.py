"""InteractionService: decode, call, encode."""

from collections.abc import AsyncIterator

from keek.v1 import interaction_service_pb2 as pb
from keek.v1 import interaction_service_pb2_grpc
from keek_server.clock import now_us
from keek_server.interactions.append import Interaction
from keek_server.interactions.kinds import KINDS
from keek_server.interactions.recorder import Recorded, Recorder
from keek_server.rpc.guard import Context


class InteractionServicer(interaction_service_pb2_grpc.InteractionServiceServicer):
    """See proto/keek/v1/interaction_service.proto."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    async def RecordInteraction(
        self, request: pb.RecordInteractionRequest, _context: Context
    ) -> pb.RecordInteractionResponse:
        """One interaction."""
        created, in_feed = await self._recorder.record(
            _decode(request.interaction), wait_for_feed=request.wait_for_feed
        )
        return pb.RecordInteractionResponse(created=created, in_feed=in_feed)

    async def RecordInteractions(
        self, requests: AsyncIterator[pb.RecordInteractionsRequest], _context: Context
    ) -> pb.RecordInteractionsResponse:
        """Many, each message whole."""
        recorded = Recorded()
        async for request in requests:
            await self._recorder.record_many([_decode(i) for i in request.interactions], recorded)
        return pb.RecordInteractionsResponse(
            created_count=recorded.created,
            duplicate_count=recorded.duplicate,
            rejected_count=recorded.rejected,
            rejections=[
                pb.RecordInteractionsResponse.Rejection(event_id=event_id, reason=reason)
                for event_id, reason in recorded.rejections
            ],
        )


def _decode(message: pb.Interaction) -> Interaction:
    has_time = message.HasField("event_time")
    return Interaction(
        message.event_id.replace("-", "").lower(),
        message.user_id,
        message.video_id,
        KINDS[message.kind],
        message.event_time.ToMicroseconds() if has_time else now_us(),
        message.region,
        (),
        message.watched.ToMilliseconds() if message.HasField("watched") else None,
    )
