"""Calls of the InteractionService."""

import datetime as dt
from collections.abc import AsyncIterable, Iterable
from typing import Unpack

from keek.asynchronous.connection import AsyncConnection
from keek.messages import Outgoing, Recorded, RecordOptions, WatchOptions, interaction, recorded
from keek.v1.interaction_service_pb2 import (
    Interaction,
    InteractionKind,
    RecordInteractionRequest,
    RecordInteractionsResponse,
)


class InteractionCalls(AsyncConnection):
    """Feature of `keek.aio.Client`."""

    async def record_interaction(
        self,
        user_id: str,
        video_id: str,
        kind: InteractionKind.ValueType,
        *,
        event_id: str | None = None,
        event_time: dt.datetime | None = None,
        region: str = "",
        watched_s: float | None = None,
        wait_for_feed: bool = False,
        timeout_s: float | None = None,
    ) -> Recorded:
        """Records one interaction; it is durable when this returns.

        The `event_id` is made once a call, so that its retries are harmless. Give your own to
        repeat a call that failed. `watched_s` is how long the video was watched, of a view or a
        skip alone.

        Raises:
            NotFoundError: The video is not known; nothing is stored.
            ValueError: `event_time` has no time zone, or `watched_s` is no number of seconds.
        """
        request = RecordInteractionRequest(
            interaction=interaction(
                user_id,
                video_id,
                kind,
                event_id=event_id,
                event_time=event_time,
                region=region,
                watched_s=watched_s,
            ),
            wait_for_feed=wait_for_feed,
        )
        response = await self._call(
            self._stubs.interactions.RecordInteraction,
            request,
            timeout_s,
            self._timeouts.record_interaction_s,
        )
        return recorded(request, response)

    async def view(self, user_id: str, video_id: str, **options: Unpack[WatchOptions]) -> Recorded:
        """`record_interaction` of a view."""
        return await self.record_interaction(
            user_id, video_id, InteractionKind.INTERACTION_KIND_VIEW, **options
        )

    async def like(self, user_id: str, video_id: str, **options: Unpack[RecordOptions]) -> Recorded:
        """`record_interaction` of a like."""
        return await self.record_interaction(
            user_id, video_id, InteractionKind.INTERACTION_KIND_LIKE, **options
        )

    async def save(self, user_id: str, video_id: str, **options: Unpack[RecordOptions]) -> Recorded:
        """`record_interaction` of a save."""
        return await self.record_interaction(
            user_id, video_id, InteractionKind.INTERACTION_KIND_SAVE, **options
        )

    async def share(self, user_id: str, video_id: str, **options: Unpack[RecordOptions]) -> Recorded:
        """`record_interaction` of a share."""
        return await self.record_interaction(
            user_id, video_id, InteractionKind.INTERACTION_KIND_SHARE, **options
        )

    async def skip(self, user_id: str, video_id: str, **options: Unpack[WatchOptions]) -> Recorded:
        """`record_interaction` of a skip."""
        return await self.record_interaction(
            user_id, video_id, InteractionKind.INTERACTION_KIND_SKIP, **options
        )

    async def record_interactions(
        self,
        interactions: Iterable[Interaction] | AsyncIterable[Interaction],
        *,
        timeout_s: float | None = None,
    ) -> RecordInteractionsResponse:
        """Records many, in batches on one stream; make them with `keek.interaction`.

        After an error, call again with the same interactions: what had been stored is recognised
        by its `event_id`. The iterable is read by another task, as the server takes it. What
        it raises is raised here; batches that were full before may be stored.
        """
        outgoing = Outgoing()
        requests = outgoing.arequests(interactions)
        try:
            return await self._call(
                self._stubs.interactions.RecordInteractions,
                requests,
                timeout_s,
                self._timeouts.record_interactions_s,
            )
        finally:
            if outgoing.error is not None:
                raise outgoing.error
