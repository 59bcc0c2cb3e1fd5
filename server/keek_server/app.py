"""The server's life: opens everything, yields, closes in reverse."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from keek_server.breaker import Breaker
from keek_server.errors import UnavailableError
from keek_server.experiments.keeper import ExperimentKeeper
from keek_server.experiments.live import LiveExperiments
from keek_server.experiments.registry import ExperimentRegistry
from keek_server.experiments.reports import ExperimentReports
from keek_server.feed.cached import CachedFeeds, CachedSource
from keek_server.feed.exposures import ExposureLog
from keek_server.feed.filters import FILTERS
from keek_server.feed.hydrators import LogHydrator, ProjectionHydrator
from keek_server.feed.mixing import QuotaSelector
from keek_server.feed.parameters import FeedParameters
from keek_server.feed.pipeline import FeedPipeline, Stages
from keek_server.feed.ranking import ReleaseRanking
from keek_server.feed.scorers import SourceScorer
from keek_server.feed.sources import PersonalisedSource, PopularSource, TrendingSource
from keek_server.feed.types import FeedSource
from keek_server.interactions.connection import open_redis
from keek_server.interactions.csv_tail import CsvTail
from keek_server.interactions.heads import TrendingHead
from keek_server.interactions.keys import ProjectionKeys
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.projection import Projection
from keek_server.interactions.projector import Projector
from keek_server.interactions.recorder import Recorder
from keek_server.interactions.trending import Trending
from keek_server.interactions.users import LoggedUsers
from keek_server.interactions.watch import TrendingWatch
from keek_server.interactions.writer import ProjectionWriter
from keek_server.jobs import running
from keek_server.metrics_endpoint import metrics_endpoint
from keek_server.port import reserved_port, with_port
from keek_server.releases.alias import keep_alias
from keek_server.releases.channel import PlanChannel
from keek_server.releases.diff import FeedDiffer
from keek_server.releases.figures import ReleaseFigures
from keek_server.releases.fleet import Fleet
from keek_server.releases.follower import CatalogueFollower
from keek_server.releases.heartbeat import Heartbeat
from keek_server.releases.live import LiveRelease
from keek_server.releases.opening import Executors, ReleaseOpener
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.rollouts import Rollouts, RolloutWatch
from keek_server.releases.shadow import Shadow
from keek_server.releases.watchdog import Watchdog
from keek_server.retrieval.cuda import open_gpu
from keek_server.retrieval.milvus_store import open_milvus
from keek_server.retrieval.searcher import search_executor
from keek_server.rpc.admin import Authority
from keek_server.rpc.door import open_door
from keek_server.rpc.drain import Drain
from keek_server.rpc.experiments import ExperimentServicer
from keek_server.rpc.feed import FeedServicer
from keek_server.rpc.interactions import InteractionServicer
from keek_server.rpc.releases import ReleaseServicer
from keek_server.rpc.search import SearchServicer
from keek_server.rpc.server import (
    FEED,
    SERVICES,
    Health,
    bind,
    build_interaction_server,
    build_server,
    stop_servers,
)
from keek_server.rpc.trending import TrendingServicer
from keek_server.rpc.videos import VideoServicer
from keek_server.search.audience import AudienceFollower
from keek_server.search.finder import Finder
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.storage.retention import Retention
from keek_server.towers.client import open_towers
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.changes import ChangeFeed
from keek_server.videos.cleaner import Cleaner
from keek_server.videos.decoding.decoder import open_decoder
from keek_server.videos.embedder import Embedder
from keek_server.videos.ingest import Ingest
from keek_server.videos.library import Library
from keek_server.videos.media import open_media
from keek_server.videos.receiver import Receiver
from keek_server.videos.slots import Slots
from keek_server.videos.uploads import Uploads
from keek_server.videos.watch import VideoWatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class App:
    """A running server."""

    port: int
    interactions_port: int | None
    """Of interactions alone, if they have one."""
    settled: bool
    """Whether what should be served was, before the first connection was taken; only workers wait for it."""
    live: LiveRelease
    projector: Projector
    figures: ReleaseFigures


@asynccontextmanager
async def open_app(settings: Settings, *, worker: int | None = None) -> AsyncIterator[App]:
    """Serves while the block runs; drains and closes everything when it ends.

    Args:
        settings: What it serves with.
        worker: The number of this process, from 1, where others serve on the same port, which is not 0 then.
            Such a process takes no connection before it can answer.

    Raises:
        SetupError: When a part that is needed at start cannot be reached, or the address
            cannot be bound.
    """
    async with AsyncExitStack() as stack:
        gpu = stack.enter_context(open_gpu(settings))
        database = await stack.enter_async_context(open_database(settings))
        redis = await stack.enter_async_context(open_redis(settings))
        towers = await stack.enter_async_context(open_towers(settings))
        media = await stack.enter_async_context(open_media(settings))
        decoder = await stack.enter_async_context(open_decoder(settings))
        milvus = stack.enter_context(open_milvus(settings))
        executors = Executors(*(stack.enter_context(search_executor()) for _ in range(2)))

        catalogue = Catalogue(database)
        log = InteractionLog(database, max_rows=settings.commit_rows, max_delay_s=settings.commit_delay_s)
        keys = ProjectionKeys.of(settings.redis_prefix, (await log.extent()).log_id)
        breaker = Breaker("Redis", "redis", deadline_s=settings.redis_deadline_s)
        projection = Projection(redis, keys, deadline_s=settings.redis_deadline_s, breaker=breaker)
        logged_users = LoggedUsers(
            database, history_limit=settings.history_limit, seen_limit=settings.seen_limit
        )
        trending = Trending(projection, settings)
        head = TrendingHead(trending, refresh_s=settings.trending_refresh_s)
        projector = Projector(log, projection, ProjectionWriter(redis, keys, settings), settings)
        feed = ChangeFeed(database)
        registry = ReleaseRegistry(database)
        fleet = Fleet(database, stale_s=settings.server_stale_s)
        channel = PlanChannel(redis, keys, deadline_s=settings.redis_deadline_s)
        opener = ReleaseOpener(feed, towers, executors, settings, milvus=milvus, gpu=gpu)
        live = LiveRelease(registry, opener, poll_s=settings.release_poll_s)
        follower = CatalogueFollower(feed, catalogue, live, poll_s=settings.catalogue_poll_s)
        embedder = Embedder(database, live, media, decoder, follower.notify, settings)
        ingest = Ingest(database, catalogue, media, decoder, embedder, settings)
        uploads = Uploads(database)
        incoming = Slots(settings.upload_limit, "videos coming in")
        receiver = Receiver(uploads, catalogue, media, ingest, incoming, settings)
        cleaner = Cleaner(database, uploads, media, settings)
        library = Library(catalogue, media, ingest, follower, cleaner, incoming, settings)
        watchers = Slots(settings.watch_limit, "callers of WatchVideo")
        exposures = ExposureLog(database, sampling=settings.exposure_sampling)
        experiment_registry = ExperimentRegistry(database)
        reports = ExperimentReports(settings.database_url, Slots(2, "reports that are made"))
        experiments = LiveExperiments(experiment_registry, live, holdout=settings.experiment_holdout)
        cached_feeds = CachedFeeds(redis, keys, deadline_s=settings.redis_deadline_s, breaker=breaker)
        figures = ReleaseFigures(window_s=settings.rollback_window_s)
        shadow = Shadow(live, figures, limit=settings.shadow_limit)
        pipeline = FeedPipeline(
            live,
            Stages(
                hydrators=(ProjectionHydrator(projection), LogHydrator(logged_users)),
                sources=(PersonalisedSource(), TrendingSource(trending, head, catalogue)),
                reserves=(PopularSource(),),
                filters=FILTERS,
                scorer=SourceScorer(),
                selector=QuotaSelector(),
                side_effects=(exposures, figures, shadow),
                fallbacks={FeedSource.PERSONALISED: CachedSource(cached_feeds)},
                ranking=ReleaseRanking(),
            ),
            source_deadline_s=settings.source_deadline_s,
            parameters=FeedParameters(
                settings.personalised_share,
                settings.per_owner_cap,
                exploration=settings.exploration,
                video_exploration=settings.video_exploration,
                ranker=settings.ranker,
            ),
            assign=experiments.assign,
        )
        shadow.use(pipeline)
        stack.push_async_callback(exposures.aclose)
        stack.push_async_callback(pipeline.drain)
        stack.push_async_callback(log.aclose)
        stack.push_async_callback(embedder.aclose)
        stack.push_async_callback(receiver.aclose)
        stack.push_async_callback(library.aclose)

        retention = Retention(
            {
                log.prune: settings.interaction_retention_days,
                exposures.prune: settings.exposure_retention_days,
            }
        )
        health = Health()
        drain = Drain()
        recorder = Recorder(log, catalogue, projector, head, wait_for_feed_s=settings.wait_for_feed_s)
        rollouts = Rollouts(registry, fleet, channel)
        interaction_servicer, door = InteractionServicer(recorder), open_door(settings)
        server = build_server(
            FeedServicer(pipeline, catalogue, deadline_s=settings.feed_deadline_s),
            interaction_servicer,
            VideoServicer(
                catalogue,
                library,
                receiver,
                VideoWatch(uploads, catalogue, watchers, poll_s=settings.watch_poll_s),
                upload_idle_s=settings.upload_idle_s,
            ),
            SearchServicer(Finder(live, catalogue, decoder)),
            TrendingServicer(
                trending,
                catalogue,
                TrendingWatch(Slots(settings.watch_limit, "callers of WatchTrending")),
            ),
            ReleaseServicer(
                registry,
                rollouts,
                RolloutWatch(rollouts.current, Slots(settings.watch_limit, "callers of WatchReleases")),
                FeedDiffer(
                    registry,
                    live,
                    pipeline,
                    Slots(1, "callers of DiffReleases"),
                    deadline_s=settings.feed_deadline_s,
                ),
            ),
            ExperimentServicer(
                experiment_registry,
                lambda: _announced(channel, experiments),
                reports,
            ),
            health,
            Authority(settings.admin_token),
            drain,
            door,
            waiting_limit=settings.waiting_limit,
        )
        port = _reserved(stack, settings.listen, "KEEK_LISTEN", worker)
        servers = {"KEEK_LISTEN": (server, with_port(settings.listen, port))}
        interactions_port = None
        if settings.interactions_listen:
            setting = "KEEK_INTERACTIONS_LISTEN"
            interactions_port = _reserved(stack, settings.interactions_listen, setting, worker)
            server = build_interaction_server(
                interaction_servicer, health, drain, door, waiting_limit=settings.waiting_limit
            )
            servers[setting] = (server, with_port(settings.interactions_listen, interactions_port))
        heartbeat = Heartbeat(
            fleet,
            live,
            _name(settings, port, worker),
            figures.all,
            interval_s=settings.heartbeat_s,
        )
        stack.push_async_callback(heartbeat.aclose)
        await health.set(SERVICES, serving=True)
        await health.set(("", FEED), serving=False)
        jobs = {
            "projector": projector.run,
            "release follower": live.follow,
            "announcements": lambda: channel.listen(_both(live.notify, experiments.notify)),
            "experiments": experiments.follow,
            "experiment keeper": ExperimentKeeper(
                experiment_registry, reports, review_s=settings.experiment_review_s
            ).run,
            "heartbeat": heartbeat.run,
            "watchdog": Watchdog(registry, live, figures, channel, settings).run,
            "catalogue follower": follower.run,
            "embedder": embedder.run,
            "video cleaner": cleaner.run,
            "audience": AudienceFollower(log, projection, live, poll_s=settings.audience_poll_s).run,
            "exposure log": exposures.run,
            "retention": retention.run,
            "readiness": lambda: _announce(live, health),
        }
        if milvus is not None:
            jobs["alias in Milvus"] = lambda: keep_alias(registry, milvus, poll_s=settings.release_poll_s)
        if settings.interaction_csv is not None:
            tail = CsvTail(log, settings.interaction_csv, poll_s=settings.projection_poll_s)
            jobs["interaction csv"] = tail.run
        await stack.enter_async_context(running(jobs))
        if settings.metrics_listen:
            stack.enter_context(metrics_endpoint(settings.metrics_listen))

        settled = worker is not None and await _settled(live, settings.worker_ready_s)
        # Not before: the kernel gives a listening worker its share of the connections.
        for setting, (server, address) in servers.items():
            bind(server, address, setting=setting)
        bound = [server for server, _ in servers.values()]
        stack.push_async_callback(stop_servers, bound, health, drain, settings)
        for server in bound:
            await server.start()
        yield App(port, interactions_port, settled, live, projector, figures)


def _reserved(stack: AsyncExitStack, listen: str, setting: str, worker: int | None) -> int:
    """The number of a port that is held; of workers, their supervisor holds it."""
    if worker is not None:
        return int(listen.rpartition(":")[2])
    return stack.enter_context(reserved_port(listen, setting=setting))


def _name(settings: Settings, port: int, worker: int | None) -> str:
    name = settings.server_name or f"{socket.gethostname()}:{port}"
    return name if worker is None else f"{name}#{worker}"


async def _settled(live: LiveRelease, timeout_s: float) -> bool:
    """Whether what should be served is, in time."""
    try:
        async with asyncio.timeout(timeout_s):
            await live.settled.wait()
    except TimeoutError:
        logger.warning("serving without a release: %s", live.problem or "it takes long to open")
        return False
    return True


async def _announced(channel: PlanChannel, experiments: LiveExperiments) -> None:
    """Tells this server of a change of experiments, and the others, which find it by themselves otherwise."""
    experiments.notify()
    with suppress(UnavailableError):
        await channel.announce()


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        first()
        second()

    return call


async def _announce(live: LiveRelease, health: Health) -> None:
    """NOT_SERVING until model and index are ready."""
    await live.wait()
    await health.set(("", FEED), serving=True)
