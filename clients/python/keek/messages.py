"""Requests and batches, made alike for the sync and the asyncio client."""

import datetime as dt
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Generic, TypedDict, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from keek.v1.interaction_service_pb2 import (
    Interaction,
    InteractionKind,
    RecordInteractionRequest,
    RecordInteractionResponse,
    RecordInteractionsRequest,
)
from keek.v1.trending_service_pb2 import ListTrendingRequest, TrendingRanking, WatchTrendingRequest
from keek.v1.video_service_pb2 import Video

MAX_BATCH_ITEMS: Final = 1000
"""What one message of interactions or videos may hold."""

MAX_BATCH_BYTES: Final = 1 << 20
"""Keeps a batch well under the 4 MiB that gRPC servers accept by default."""

Item = TypeVar("Item", Interaction, Video)
TrendingRequest = TypeVar("TrendingRequest", ListTrendingRequest, WatchTrendingRequest)


@dataclass(frozen=True, slots=True)
class Recorded:
    """An interaction that is durable now."""

    event_id: str
    created: bool
    """False when an interaction with this event_id had been recorded before."""
    in_feed: bool
    """True when the next feed reflects it already."""


class RecordOptions(TypedDict, total=False):
    """What may be said about an interaction beside user, video and kind."""

    event_id: str | None
    """A UUID that the caller keeps, to repeat a failed call later; made anew when None."""
    event_time: dt.datetime | None
    """When it happened, with a time zone; None means when it is recorded."""
    region: str
    """Where it happened, as trending per region counts it; empty means not known."""
    wait_for_feed: bool
    """Answer only when the user's next feed reflects the interaction, or after a bounded wait."""
    timeout_s: float | None


class WatchOptions(RecordOptions, total=False):
    """The same about a view or a skip."""

    watched_s: float | None
    """How long the video was watched, in seconds, with what was watched again; None means not known."""


def timestamp(time: dt.datetime) -> Timestamp:
    """A protobuf timestamp.

    Raises:
        ValueError: `time` has no time zone; which moment it means is not known.
    """
    if time.tzinfo is None:
        raise ValueError(f"{time.isoformat()} has no time zone")
    message = Timestamp()
    message.FromDatetime(time)
    return message


def duration(seconds: float) -> Duration:
    """A protobuf duration, to the microsecond.

    Raises:
        ValueError: `seconds` is not a number, or too long to be one.
    """
    message = Duration()
    try:
        message.FromTimedelta(dt.timedelta(seconds=seconds))
    except (OverflowError, ValueError):
        raise ValueError(f"{seconds} is no number of seconds that a duration can have") from None
    return message


def interaction(
    user_id: str,
    video_id: str,
    kind: InteractionKind.ValueType,
    *,
    event_id: str | None = None,
    event_time: dt.datetime | None = None,
    region: str = "",
    watched_s: float | None = None,
) -> Interaction:
    """One interaction, with a new `event_id` unless one is given; `watched_s` is for views and skips."""
    return Interaction(
        event_id=event_id or str(uuid.uuid4()),
        user_id=user_id,
        video_id=video_id,
        kind=kind,
        event_time=None if event_time is None else timestamp(event_time),
        region=region,
        watched=None if watched_s is None else duration(watched_s),
    )


def recorded(request: RecordInteractionRequest, response: RecordInteractionResponse) -> Recorded:
    """What the caller learns from an acknowledged interaction."""
    return Recorded(request.interaction.event_id, response.created, response.in_feed)


def trending_of(request: TrendingRequest, *, rising: bool, tag: str, region: str) -> TrendingRequest:
    """`request`, made to ask for rising videos, or for one tag or region alone.

    Raises:
        ValueError: There is a tag and a region; lists are kept by either, not by both.
    """
    if tag and region:
        raise ValueError("give a tag or a region, not both")
    if rising:
        request.ranking = TrendingRanking.TRENDING_RANKING_RISING
    if tag:
        request.tag = tag
    if region:
        request.region = region
    return request


class Batcher(Generic[Item]):
    """Cuts a sequence of messages into batches within both limits."""

    def __init__(self) -> None:
        self._batch: list[Item] = []
        self._bytes = 0

    def add(self, item: Item) -> list[Item] | None:
        """Takes one message; gives the batch that it does not fit in any more."""
        size = item.ByteSize()
        full = len(self._batch) == MAX_BATCH_ITEMS or self._bytes + size > MAX_BATCH_BYTES
        done = self.rest() if full else None
        self._batch.append(item)
        self._bytes += size
        return done or None

    def rest(self) -> list[Item]:
        """What is left; empty when nothing is."""
        batch, self._batch, self._bytes = self._batch, [], 0
        return batch


def batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    """Cuts `items` into batches of at most MAX_BATCH_ITEMS and about MAX_BATCH_BYTES."""
    batcher = Batcher[Item]()
    for item in items:
        if done := batcher.add(item):
            yield done
    if rest := batcher.rest():
        yield rest


async def abatches(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[list[Item]]:
    """As `batches`, from an async iterable as well."""
    if not isinstance(items, AsyncIterable):
        for batch in batches(items):
            yield batch
        return
    batcher = Batcher[Item]()
    async for item in items:
        if done := batcher.add(item):
            yield done
    if rest := batcher.rest():
        yield rest


class Outgoing:
    """The requests of one client stream; keeps what the caller's own iterable raises.

    gRPC would log that and cancel the call, and the caller would never see it. Here the stream
    just ends; whoever made the call raises `error` afterwards. What was sent until then may
    have been stored, which is harmless.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def requests(self, items: Iterable[Interaction]) -> Iterator[RecordInteractionsRequest]:
        """One request a batch."""
        try:
            for batch in batches(items):
                yield RecordInteractionsRequest(interactions=batch)
        except Exception as error:  # noqa: BLE001 - any error of the caller's, handed back to the caller
            self.error = error

    async def arequests(
        self, items: Iterable[Interaction] | AsyncIterable[Interaction]
    ) -> AsyncIterator[RecordInteractionsRequest]:
        """One request a batch."""
        try:
            async for batch in abatches(items):
                yield RecordInteractionsRequest(interactions=batch)
        except Exception as error:  # noqa: BLE001 - any error of the caller's, handed back to the caller
            self.error = error
