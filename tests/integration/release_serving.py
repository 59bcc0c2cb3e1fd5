"""A real server of releases for tests: the servicer behind its guard, on a database, and a fleet."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import grpc
from manifests import bare_manifest
from pydantic import SecretStr

from keek.v1 import release_service_pb2_grpc
from keek_server.clock import now_us
from keek_server.errors import UnavailableError
from keek_server.feed.types import (
    Candidate,
    FeedContext,
    FeedPage,
    FeedQuery,
    FeedSource,
    Selection,
)
from keek_server.releases.diff import FeedDiffer
from keek_server.releases.fleet import Fleet, ServerStatus
from keek_server.releases.manifest import GateResult, Manifest, TowerVersion
from keek_server.releases.opening import ServingRelease
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.rollouts import Rollouts, RolloutWatch
from keek_server.retrieval.index import IndexReport
from keek_server.rpc.admin import Authority
from keek_server.rpc.guard import GuardInterceptor
from keek_server.rpc.releases import ReleaseServicer
from keek_server.rpc.rules import RuleChecker
from keek_server.storage.database import Database
from keek_server.videos.slots import Slots

TOKEN = "a-token_of~the-tests"

WATCHERS = 2
"""How many may watch at the same time."""


def manifest(release_id: str, number: int, *gates: GateResult, forced_reason: str = "") -> Manifest:
    """Of the release that was made at second `number`."""
    return bare_manifest(release_id, number).model_copy(
        update={
            "create_time_us": number * 1_000_000,
            "video_tower": TowerVersion(version=number + 2, sha256="", size_bytes=1),
            "index": IndexReport("exact", 1200, 0, 0, 1.0, 1, 0.0),
            "metrics": {"recall": 0.5},
            "source": "run monday",
            "gates": gates,
            "forced_reason": forced_reason,
        }
    )


class Follower:
    """A server of the fleet that does what the plan says, as soon as it is let."""

    def __init__(self, name: str, registry: ReleaseRegistry, fleet: Fleet) -> None:
        self.name = name
        self.follows = asyncio.Event()
        self.follows.set()
        self.problem = ""
        self._registry = registry
        self._fleet = fleet
        self._seq = 0

    async def run(self) -> None:
        while True:
            await self.beat()
            await asyncio.sleep(0.02)

    async def beat(self) -> None:
        plan = await self._registry.plan()
        if plan is not None and self.follows.is_set():
            self._seq = plan.seq
        trial = plan.trial.release_id if plan and plan.trial else ""
        release_id = plan.release_id if plan else ""
        await self._fleet.beat(
            ServerStatus(
                f"id of {self.name}",
                self.name,
                1_000_000,
                now_us(),
                self._seq,
                release_id,
                trial,
                problem="" if self.follows.is_set() else self.problem,
            )
        )


@dataclass(slots=True)
class Announcements:
    """Counts, and may fail."""

    count: int = 0
    fails: bool = False

    async def announce(self) -> None:
        self.count += 1
        if self.fails:
            raise UnavailableError("Redis is down")


@dataclass(slots=True)
class Feeds:
    """Feeds of releases that say by themselves what is in them: `ab` gives the videos a and b."""

    running: Counter[str] = field(default_factory=Counter)
    most_at_once: int = 0
    opened: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    async def run(self, query: FeedQuery, serving: ServingRelease | None = None) -> FeedPage:
        assert serving is not None
        if query.user_id == "unlucky":
            raise UnavailableError("no feed for this one")
        self.running["now"] += 1
        self.most_at_once = max(self.most_at_once, self.running["now"])
        await asyncio.sleep(0.005)
        self.running["now"] -= 1
        items = [
            Candidate(f"{query.user_id}-{letter}", FeedSource.PERSONALISED, 0.5)
            for letter in serving.release.id[: query.page_size]
        ]
        return FeedPage(FeedContext(query, serving, now_us()), Selection(items, []), [], [], items)

    @asynccontextmanager
    async def opener(self, release_id: str) -> AsyncIterator[ServingRelease]:
        self.opened.append(release_id)
        yield cast("ServingRelease", SimpleNamespace(release=SimpleNamespace(id=release_id)))
        self.closed.append(release_id)


@dataclass(slots=True)
class LostAnswers(grpc.aio.ServerInterceptor):
    """Lets the next calls of any method do their work, and then fail as if the server had gone."""

    left: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    tokens: dict[str, str] = field(default_factory=dict)
    """The last authorization that each method was sent."""

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        name = details.method.rpartition("/")[2]
        metadata = dict(details.invocation_metadata)
        self.calls[name] += 1
        self.tokens[name] = metadata.get("authorization", "")
        if not self.left:
            return handler
        self.left -= 1

        async def lost(request: Any, context: Any) -> Any:
            await handler.unary_unary(request, context)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server has gone")

        return grpc.unary_unary_rpc_method_handler(
            lost, handler.request_deserializer, handler.response_serializer
        )


@dataclass(slots=True)
class ReleaseServer:
    """A running server, and what stands behind it."""

    target: str
    registry: ReleaseRegistry
    fleet: Fleet
    announcements: Announcements
    feeds: Feeds
    answers: LostAnswers
    followers: dict[str, Follower]


@asynccontextmanager
async def serve_releases(
    database: Database, *, token: str | None = TOKEN, followers: tuple[str, ...] = ("web-1", "web-2")
) -> AsyncIterator[ReleaseServer]:
    """A server on a free port of the loopback interface, and a fleet of followers."""
    registry, fleet = ReleaseRegistry(database), Fleet(database, stale_s=30.0)
    announcements, feeds, answers = Announcements(), Feeds(), LostAnswers()
    rollouts = Rollouts(registry, fleet, announcements)
    opener = cast("Any", SimpleNamespace(opened=feeds.opener))
    servicer = ReleaseServicer(
        registry,
        rollouts,
        RolloutWatch(rollouts.current, Slots(WATCHERS, "callers of WatchReleases"), poll_s=0.02),
        FeedDiffer(registry, opener, feeds, Slots(1, "callers of DiffReleases"), deadline_s=10.0),
    )
    authority = Authority(SecretStr(token) if token is not None else None)
    server = grpc.aio.server(interceptors=(answers, GuardInterceptor(RuleChecker(), authority)))
    release_service_pb2_grpc.add_ReleaseServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    members = {name: Follower(name, registry, fleet) for name in followers}
    for member in members.values():
        await member.beat()
    await server.start()
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(member.run()) for member in members.values()]
            yield ReleaseServer(f"127.0.0.1:{port}", registry, fleet, announcements, feeds, answers, members)
            for task in tasks:
                task.cancel()
    finally:
        await server.stop(grace=None)
