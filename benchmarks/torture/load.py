"""The load: clients that repeat each event, with its event_id, until it is acknowledged."""

import asyncio
import datetime as dt
import random
import uuid
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import keek
import keek.aio
from keek_server.clock import now_us

_UNARY, _STREAMS = 12, 3
_USERS = 150
_REGIONS = ("", "at", "tz")
_CALL_S = 3.0
_IMPATIENT_S = 0.004
"""A deadline that some calls miss: whether their event was stored is not known then."""
_PAUSE_S = 0.05
"""Before a call is repeated that failed."""
_LARGE = 1100
"""More than one message of a stream holds."""
_REMEMBERED = 500
"""Acknowledged events, of which some are sent again."""
_NUMBERS = 10_000_000
_DAYS_US = 4 * 24 * 3600 * 1_000_000
_EPOCH = dt.datetime.fromtimestamp(0, dt.UTC)
_KINDS = (
    keek.InteractionKind.INTERACTION_KIND_VIEW,
    keek.InteractionKind.INTERACTION_KIND_LIKE,
    keek.InteractionKind.INTERACTION_KIND_SAVE,
)
# Whatever a kill or a short deadline may cause. Anything else is a fault, and ends the run.
_OUTAGES = (
    keek.UnavailableError,
    keek.DeadlineExceededError,
    keek.CallCancelledError,
    keek.ResourceExhaustedError,
)


class FaultError(Exception):
    """An answer that no outage explains."""


@dataclass(frozen=True, slots=True)
class Event:
    """One interaction, different from all others by its time."""

    event_id: str
    user_id: str
    video_id: str
    kind: keek.InteractionKind.ValueType
    event_time_us: int
    region: str = ""

    @property
    def time(self) -> dt.datetime:
        """When it happened."""
        return _EPOCH + dt.timedelta(microseconds=self.event_time_us)

    def message(self) -> keek.Interaction:
        """As it is sent on a stream."""
        message = keek.interaction(
            self.user_id, self.video_id, self.kind, event_id=self.event_id, event_time=self.time
        )
        message.region = self.region
        return message


class Load:
    """Many clients at once, until `stop`."""

    def __init__(self, target: str, video_ids: Sequence[str], seed: str) -> None:
        """
        Args:
            target: The gRPC target of all servers.
            video_ids: What is interacted with.
            seed: Of the events and of what is done with them.
        """
        self.acked: dict[str, Event] = {}
        """The acknowledged events, by event_id."""
        self.created_again = 0
        """Answers that call an event new which another answer had called new."""
        self._created: Counter[str] = Counter()
        self._recent: deque[Event] = deque(maxlen=_REMEMBERED)
        self._target = target
        self._video_ids = video_ids
        self._seed = seed
        self._start_us = now_us() // _NUMBERS * _NUMBERS
        self._numbered = 0
        self._stopping = False

    async def run(self) -> None:
        """Runs until stopped, and until what was begun then is acknowledged.

        Raises:
            ExceptionGroup: Of a client's FaultError or keek.KeekError, which no outage explains.
        """
        async with asyncio.TaskGroup() as group:
            for number in range(_UNARY + _STREAMS):
                chance = random.Random(f"{self._seed} {number}")
                group.create_task(self._client(chance, streams=number >= _UNARY))

    def stop(self) -> None:
        """Begins nothing new from now on."""
        self._stopping = True

    async def _client(self, chance: random.Random, *, streams: bool) -> None:
        options = {"grpc.initial_reconnect_backoff_ms": 50, "grpc.max_reconnect_backoff_ms": 500}
        async with keek.aio.Client(self._target, retry=None, options=options) as client:
            while not self._stopping:
                if streams:
                    await self._stream(client, chance)
                    await asyncio.sleep(chance.uniform(0.0, 0.4))
                else:
                    await self._single(client, chance)
                    await asyncio.sleep(chance.uniform(0.0, 0.03))

    async def _single(self, client: keek.aio.Client, chance: random.Random) -> None:
        draw = chance.random()
        if draw < 0.05 and self._recent:
            # Acknowledged before.
            await self._record(client, chance, chance.choice(self._recent))
        elif draw < 0.1:
            # Twice at once: the calls go to different servers in turn.
            event = self._event(chance)
            await asyncio.gather(*(self._record(client, chance, event) for _ in range(2)))
        else:
            await self._record(client, chance, self._event(chance))

    async def _record(self, client: keek.aio.Client, chance: random.Random, event: Event) -> None:
        while True:
            try:
                recorded = await client.record_interaction(
                    event.user_id,
                    event.video_id,
                    event.kind,
                    event_id=event.event_id,
                    event_time=event.time,
                    wait_for_feed=chance.random() < 0.05,
                    timeout_s=_IMPATIENT_S if chance.random() < 0.03 else _CALL_S,
                )
            except _OUTAGES:
                await asyncio.sleep(_PAUSE_S)
                continue
            self._created[event.event_id] += recorded.created
            self.created_again += recorded.created and self._created[event.event_id] > 1
            self._acknowledge(event)
            return

    async def _stream(self, client: keek.aio.Client, chance: random.Random) -> None:
        size = _LARGE if chance.random() < 0.02 else chance.choice((1, 5, 20, 50))
        events = [self._event(chance, region=chance.choice(_REGIONS)) for _ in range(size)]
        # Some twice in one stream, some acknowledged before.
        events += [event for event in events if chance.random() < 0.05]
        events += chance.sample(self._recent, min(2, len(self._recent)))
        messages = [event.message() for event in events]
        new = {event.event_id for event in events} - self.acked.keys()
        while True:
            try:
                answer = await client.record_interactions(messages, timeout_s=2 * _CALL_S)
            except _OUTAGES:
                await asyncio.sleep(_PAUSE_S)
                continue
            if answer.rejected_count or answer.created_count + answer.duplicate_count != len(events):
                raise FaultError(f"{len(events)} interactions were answered with: {answer}")
            self.created_again += max(0, answer.created_count - len(new))
            for event in events:
                self._acknowledge(event)
            return

    def _event(self, chance: random.Random, region: str = "") -> Event:
        # The last seven digits of its time are its number: it differs from every other's.
        age_us = chance.randrange(_DAYS_US) // _NUMBERS * _NUMBERS
        self._numbered += 1
        return Event(
            str(uuid.UUID(int=chance.getrandbits(128), version=4)),
            f"u{chance.randrange(_USERS)}",
            chance.choice(self._video_ids),
            chance.choice(_KINDS),
            self._start_us - _NUMBERS - age_us + self._numbered % _NUMBERS,
            region,
        )

    def _acknowledge(self, event: Event) -> None:
        if event.event_id not in self.acked:
            self.acked[event.event_id] = event
            self._recent.append(event)
