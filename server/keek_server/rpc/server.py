"""The gRPC server: services, guard, health, reflection."""

import asyncio
from collections.abc import Iterable, Sequence

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from keek.v1 import (
    experiment_service_pb2,
    experiment_service_pb2_grpc,
    feed_service_pb2,
    feed_service_pb2_grpc,
    interaction_service_pb2,
    interaction_service_pb2_grpc,
    release_service_pb2,
    release_service_pb2_grpc,
    search_service_pb2,
    search_service_pb2_grpc,
    trending_service_pb2,
    trending_service_pb2_grpc,
    video_service_pb2,
    video_service_pb2_grpc,
)
from keek_server.errors import SetupError
from keek_server.rpc.admin import Authority
from keek_server.rpc.door import Door
from keek_server.rpc.drain import Drain
from keek_server.rpc.experiments import ExperimentServicer
from keek_server.rpc.feed import FeedServicer
from keek_server.rpc.guard import GuardInterceptor
from keek_server.rpc.interactions import InteractionServicer
from keek_server.rpc.reflection import add_reflection
from keek_server.rpc.releases import ReleaseServicer
from keek_server.rpc.rules import RuleChecker
from keek_server.rpc.search import SearchServicer
from keek_server.rpc.trending import TrendingServicer
from keek_server.rpc.videos import VideoServicer
from keek_server.settings import Settings

FEED = feed_service_pb2.DESCRIPTOR.services_by_name["FeedService"].full_name
INTERACTION = interaction_service_pb2.DESCRIPTOR.services_by_name["InteractionService"].full_name
VIDEO = video_service_pb2.DESCRIPTOR.services_by_name["VideoService"].full_name
TRENDING = trending_service_pb2.DESCRIPTOR.services_by_name["TrendingService"].full_name
SEARCH = search_service_pb2.DESCRIPTOR.services_by_name["SearchService"].full_name
RELEASE = release_service_pb2.DESCRIPTOR.services_by_name["ReleaseService"].full_name
EXPERIMENT = experiment_service_pb2.DESCRIPTOR.services_by_name["ExperimentService"].full_name
SERVICES = (FEED, INTERACTION, VIDEO, TRENDING, SEARCH, RELEASE, EXPERIMENT)

_MAX_MESSAGE_BYTES = 16 * 2**20
_ENDING_S = 1.0
"""For the last statuses to get out."""
_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Clients keep idle connections alive every 30 s at most.
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # The port is held for this server (`reserved_port`): nobody else gets a part of its calls.
    ("grpc.so_reuseport", 1),
)


class Health:
    """grpc.health.v1, per service; the empty name stands for all of them."""

    def __init__(self) -> None:
        self.servicer = health.aio.HealthServicer()

    async def set(self, services: Iterable[str], *, serving: bool) -> None:
        """Says of each service whether it serves."""
        statuses = health_pb2.HealthCheckResponse
        for service in services:
            await self.servicer.set(service, statuses.SERVING if serving else statuses.NOT_SERVING)

    async def stop(self) -> None:
        """Says of all services that they do not serve, for good."""
        await self.servicer.enter_graceful_shutdown()


def build_server(
    feed: FeedServicer,
    interactions: InteractionServicer,
    videos: VideoServicer,
    search: SearchServicer,
    trending: TrendingServicer,
    releases: ReleaseServicer,
    experiments: ExperimentServicer,
    health_: Health,
    authority: Authority,
    drain: Drain,
    door: Door,
    *,
    waiting_limit: int,
) -> grpc.aio.Server:
    """A server with all services, not yet bound nor started.

    Args:
        waiting_limit: Calls that may wait until it takes them up; gRPC ends what comes on top.
    """
    server = _guarded(GuardInterceptor(RuleChecker(), authority, drain, door), waiting_limit)
    feed_service_pb2_grpc.add_FeedServiceServicer_to_server(feed, server)
    interaction_service_pb2_grpc.add_InteractionServiceServicer_to_server(interactions, server)
    video_service_pb2_grpc.add_VideoServiceServicer_to_server(videos, server)
    search_service_pb2_grpc.add_SearchServiceServicer_to_server(search, server)
    trending_service_pb2_grpc.add_TrendingServiceServicer_to_server(trending, server)
    release_service_pb2_grpc.add_ReleaseServiceServicer_to_server(releases, server)
    experiment_service_pb2_grpc.add_ExperimentServiceServicer_to_server(experiments, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_.servicer, server)
    add_reflection(server, (*SERVICES, health.SERVICE_NAME))
    return server


def build_interaction_server(
    interactions: InteractionServicer, health_: Health, drain: Drain, door: Door, *, waiting_limit: int
) -> grpc.aio.Server:
    """One with InteractionService alone: no other call stands in its queue. See `build_server`."""
    server = _guarded(GuardInterceptor(RuleChecker(), drain=drain, door=door), waiting_limit)
    interaction_service_pb2_grpc.add_InteractionServiceServicer_to_server(interactions, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_.servicer, server)
    add_reflection(server, (INTERACTION, health.SERVICE_NAME))
    return server


def _guarded(guard: GuardInterceptor, waiting_limit: int) -> grpc.aio.Server:
    return grpc.aio.server(interceptors=(guard,), options=(*_OPTIONS, *waiting_options(waiting_limit)))


def waiting_options(limit: int) -> tuple[tuple[str, int], ...]:
    """Options of a server that lets calls wait until it takes them up, but not more than `limit`.

    gRPC ends what comes on top as CANCELLED, before any Python runs: some from two thirds of the limit on,
    all from there.
    """
    return (
        ("grpc.server.max_pending_requests", limit * 2 // 3),
        ("grpc.server.max_pending_requests_hard_limit", limit),
    )


def bind(server: grpc.aio.Server, address: str, *, setting: str = "KEEK_LISTEN") -> None:
    """Has a server listen.

    Args:
        server: Not yet started.
        address: host:port, where the port is a number that is held for this process (`reserved_port`).
        setting: What says so.

    Raises:
        SetupError: When it cannot be had.
    """
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise SetupError(f"cannot listen on {address}: {error} ({setting})") from error


async def stop_servers(
    servers: Sequence[grpc.aio.Server], health_: Health, drain: Drain, settings: Settings
) -> None:
    """Lets running calls end, and makes the rest end in a way that clients repeat."""
    await health_.stop()
    await asyncio.sleep(settings.drain_delay_s)
    drain.end_watches()
    await drain.refuse()
    late = asyncio.get_running_loop().call_later(settings.drain_s, drain.end_all)
    await asyncio.gather(*(server.stop(settings.drain_s + _ENDING_S) for server in servers))
    late.cancel()
