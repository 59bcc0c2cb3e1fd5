"""ReleaseService: decode, call, encode."""

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Protocol

from keek.v1 import release_service_pb2 as pb
from keek.v1 import release_service_pb2_grpc
from keek_server.releases.diff import FeedDiffer
from keek_server.releases.plan import Trial, TrialKind
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.rollouts import Rollouts, RolloutWatch, Wish
from keek_server.rpc.guard import Context
from keek_server.rpc.release_messages import encode_diff, encode_release, encode_rollout
from keek_server.rpc.tokens import decode_position, encode_position

_DEFAULT_PAGE_SIZE = 20
_DEFAULT_FEED_SIZE = 10
_DEFAULT_WAIT_S = 30.0
_ANSWER_S = 0.5
"""Left of a caller's deadline when waiting for the fleet ends, so that the answer still arrives."""


class _Change(Protocol):
    """What every request for a change says."""

    @property
    def reason(self) -> str: ...
    @property
    def request_id(self) -> str: ...
    @property
    def wait_s(self) -> float: ...


class ReleaseServicer(release_service_pb2_grpc.ReleaseServiceServicer):
    """See proto/keek/v1/release_service.proto. Who may call what is `rpc.admin`'s matter."""

    def __init__(
        self, registry: ReleaseRegistry, rollouts: Rollouts, watch: RolloutWatch, differ: FeedDiffer
    ) -> None:
        self._registry = registry
        self._rollouts = rollouts
        self._watch = watch
        self._differ = differ

    async def ListReleases(
        self, request: pb.ListReleasesRequest, _context: Context
    ) -> pb.ListReleasesResponse:
        """One page, newest first."""
        limit = request.page_size or _DEFAULT_PAGE_SIZE
        page = await self._registry.list(limit + 1, decode_position(request.page_token))
        response = pb.ListReleasesResponse(releases=map(encode_release, page[:limit]))
        if len(page) > limit:
            last = page[limit - 1]
            response.next_page_token = encode_position(last.create_time_us, last.release_id)
        if (rollout := await self._rollouts.current()) is not None:
            response.rollout.CopyFrom(encode_rollout(rollout))
        return response

    async def GetRelease(self, request: pb.GetReleaseRequest, _context: Context) -> pb.GetReleaseResponse:
        """One release."""
        registered = await self._registry.get(request.release_id)
        return pb.GetReleaseResponse(
            release=encode_release(registered), manifest_json=json.dumps(registered.manifest)
        )

    async def ActivateRelease(
        self, request: pb.ActivateReleaseRequest, context: Context
    ) -> pb.ActivateReleaseResponse:
        """For everyone."""
        rollout = await self._rollouts.activate(request.release_id, _wish(request, context))
        return pb.ActivateReleaseResponse(rollout=encode_rollout(rollout))

    async def RollbackRelease(
        self, request: pb.RollbackReleaseRequest, context: Context
    ) -> pb.RollbackReleaseResponse:
        """To the one before."""
        rollout = await self._rollouts.roll_back(_wish(request, context))
        return pb.RollbackReleaseResponse(rollout=encode_rollout(rollout))

    async def StartTrial(self, request: pb.StartTrialRequest, context: Context) -> pb.StartTrialResponse:
        """Beside the active release."""
        trial = Trial(request.release_id, TrialKind(request.kind), request.percent)
        rollout = await self._rollouts.start_trial(trial, _wish(request, context))
        return pb.StartTrialResponse(rollout=encode_rollout(rollout))

    async def EndTrial(self, request: pb.EndTrialRequest, context: Context) -> pb.EndTrialResponse:
        """Without a trace but in the history."""
        rollout = await self._rollouts.end_trial(_wish(request, context))
        return pb.EndTrialResponse(rollout=encode_rollout(rollout))

    async def WatchReleases(
        self, _request: pb.WatchReleasesRequest, _context: Context
    ) -> AsyncIterator[pb.WatchReleasesResponse]:
        """The plan and the fleet, whenever either changes."""
        # Closed at once: who is gone must not keep a place.
        async with aclosing(self._watch.follow()) as states:
            async for rollout in states:
                yield pb.WatchReleasesResponse(rollout=encode_rollout(rollout) if rollout else None)

    async def DiffReleases(
        self, request: pb.DiffReleasesRequest, _context: Context
    ) -> pb.DiffReleasesResponse:
        """Feeds side by side."""
        diffs = await self._differ.diff(
            request.release_id,
            request.other_release_id,
            request.user_ids,
            request.page_size or _DEFAULT_FEED_SIZE,
        )
        return pb.DiffReleasesResponse(diffs=map(encode_diff, diffs))


def _wish(request: _Change, context: Context) -> Wish:
    wait_s = request.wait_s or _DEFAULT_WAIT_S
    remaining_s = context.time_remaining()
    if remaining_s is not None:
        wait_s = min(wait_s, max(0.0, remaining_s - _ANSWER_S))
    request_id = uuid.UUID(request.request_id) if request.request_id else None
    return Wish(request.reason, request_id, wait_s)
