"""What the server counts and times, for Prometheus.

`multiprocess_mode` says what a gauge of several workers (`--workers`) is together: of the last worker to
carry a plan out, say, `livemin`. Counters and histograms are added up.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from prometheus_client import Counter, Gauge, Histogram

Metric = TypeVar("Metric", Counter, Histogram)

_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

rpc_seconds = Histogram(
    "keek_rpc_seconds", "Calls by method and status code.", ("method", "code"), buckets=_BUCKETS
)
limit = Gauge("keek_concurrency_limit", "Feeds and searches that may be under way.")
in_flight = Gauge("keek_in_flight", "Feeds and searches that are under way.")
refused = Counter(
    "keek_refused_total",
    "Calls that were refused at the door, by priority and why: limit, or deadline for too little time.",
    ("priority", "reason"),
)
stage_seconds = Histogram("keek_feed_stage_seconds", "Stages of the feed.", ("stage",), buckets=_BUCKETS)
failures = Counter("keek_feed_failures_total", "Stages of the feed that failed open.", ("stage",))
breakers_open = Gauge(
    "keek_breakers_open",
    "Breakers that are open: feeds do without triton, its ranker, redis or sql, but for a call now and then.",
    ("dependency",),
    multiprocess_mode="livesum",
)
exposures_logged = Counter("keek_exposures_logged_total", "Exposures that are in the database.")
exposures_dropped = Counter("keek_exposures_dropped_total", "Exposures that were not logged.")
log_seq = Gauge("keek_log_seq", "The last row that this server appended to the log.", multiprocess_mode="max")
projection_seq = Gauge(
    "keek_projection_seq",
    "The last row of the log that readers of the projection see.",
    multiprocess_mode="max",
)
projection_lag = Histogram(
    "keek_projection_lag_seconds", "From a row's commit to its place in the projection.", buckets=_BUCKETS
)
projector_active = Gauge(
    "keek_projector_active",
    "1 on the server that holds the projection's lease.",
    multiprocess_mode="livesum",
)

release_feeds = Counter(
    "keek_release_feeds_total",
    "Feeds that were shown, by the release that made them: ok, error when the personalised part failed, "
    "empty when it found nothing for a user with a history.",
    ("release", "outcome"),
)
plan_seq = Gauge(
    "keek_plan_seq",
    "The last plan of releases that this server carried out.",
    multiprocess_mode="livemin",
)
rollbacks = Counter("keek_automatic_rollbacks_total", "What this server went back from by itself.", ("kind",))
shadow_overlap = Histogram(
    "keek_shadow_overlap",
    "Share of a shown feed's personalised videos that the shadowed release holds as well.",
    buckets=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)
shadow_left_out = Counter(
    "keek_shadow_left_out_total", "Feeds that were not shadowed: too many were under way."
)

index_searches = Counter(
    "keek_index_searches_total",
    "Batches of searches of a release's videos on a server with a GPU, by where they ran: gpu or cpu.",
    ("place",),
)
gpu_bytes = Gauge(
    "keek_index_gpu_bytes", "What copies of indexes take on the GPU, about.", multiprocess_mode="livesum"
)
gpu_failures = Counter(
    "keek_index_gpu_failures_total",
    "What failed on the GPU, and went on without it: copy, search.",
    ("stage",),
)

video_stage_seconds = Histogram(
    "keek_video_stage_seconds",
    "Stages of an upload: decode, store, clip, and fresh, which brings it into the index.",
    ("stage",),
    buckets=(*_BUCKETS, 5.0, 10.0, 30.0),
)


@cache
def labelled(metric: Metric, *labels: str) -> Metric:
    """The part of a metric with these labels; to look it up by them would take longer than to count."""
    return metric.labels(*labels)


@contextmanager
def timed(histogram: Histogram, stage: str) -> Iterator[None]:
    """Times one stage, failed or not."""
    started = time.perf_counter()
    try:
        yield
    finally:
        labelled(histogram, stage).observe(time.perf_counter() - started)
