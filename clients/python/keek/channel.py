"""How the client talks to its servers, as data: deadlines, retries, balancing, keepalive, sizes."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final

VERSION: Final = version("keek")
"""Version of the installed package."""

MAX_ATTEMPTS_LIMIT: Final = 5
"""gRPC makes at most five attempts, whatever a policy says."""

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a call is made again: on UNAVAILABLE, within the call's own deadline, and where a server's gRPC
    ended it before it was looked at (CANCELLED), as when too many wait.

    Every call of Keek may be repeated, because interactions carry an `event_id`, changes of videos
    and releases a `request_id`, and changes of experiments say what is to be. A stream is retried
    until its first message has arrived. The waits grow by `backoff_multiplier` and vary by 20 %. An
    upload goes on where it was cut off.
    """

    max_attempts: int = 4
    """The first one included; 2 to 5."""
    initial_backoff_s: float = 0.05
    max_backoff_s: float = 1.0
    backoff_multiplier: float = 2.0
    upload_patience_s: float = 60.0
    """How long an upload that has reached a server goes on trying while nothing more of it arrives."""
    max_overload_backoff_s: float = 30.0
    """The longest wait of an upload that is refused for overload: twice as long each time, from what the
    server asks for on, and never shorter than that."""

    def __post_init__(self) -> None:
        if not 2 <= self.max_attempts <= MAX_ATTEMPTS_LIMIT:
            raise ValueError(f"max_attempts must be 2 to {MAX_ATTEMPTS_LIMIT}; retry=None turns retries off")
        backoffs = (self.initial_backoff_s, self.max_backoff_s, self.max_overload_backoff_s)
        if min(*backoffs, self.backoff_multiplier) <= 0:
            raise ValueError("the backoffs and backoff_multiplier must be greater than 0")
        if self.upload_patience_s < 0:
            raise ValueError("upload_patience_s must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Deadline of each call in seconds, retries included, where the call gives no `timeout_s`."""

    list_feed_s: float = 1.25
    """The server answers within one second, if need be from its fallbacks; the rest is the way."""
    stream_feed_s: float = 30.0
    """The whole stream."""
    explain_feed_s: float = 2.5
    record_interaction_s: float = 8.0
    """One SQL transaction of up to five seconds, then `wait_for_feed` of up to two."""
    record_interactions_s: float = 120.0
    """The whole stream of batches."""
    get_video_s: float = 2.0
    list_videos_s: float = 5.0
    """One page."""
    import_videos_s: float = 30.0
    """One batch."""
    update_video_s: float = 5.0
    delete_video_s: float = 5.0
    create_video_s: float = 600.0
    """The server fetches and decodes the file."""
    upload_video_s: float = 3600.0
    """The whole upload."""
    upload_try_s: float = 300.0
    """One call of an upload, which then goes on with the next one."""
    get_upload_s: float = 2.0
    watch_video_s: float = 3600.0
    """The whole stream, which ends with the video's last state."""
    search_videos_s: float = 5.0
    """CLIP looks at the query first."""
    list_similar_videos_s: float = 2.0
    find_audience_s: float = 5.0
    list_trending_s: float = 1.25
    watch_trending_s: float = 3600.0
    """The whole stream, which has no end of its own; then watch again."""
    list_releases_s: float = 5.0
    """One page."""
    get_release_s: float = 5.0
    change_release_s: float = 15.0
    """One SQL transaction; what the call waits for the servers, its `wait_s`, comes on top."""
    watch_releases_s: float = 3600.0
    """The whole stream, which has no end of its own; then watch again."""
    diff_releases_s: float = 120.0
    """The server opens both releases first, and makes two feeds of each user."""
    list_experiments_s: float = 5.0
    """One page."""
    get_experiment_s: float = 5.0
    change_experiment_s: float = 15.0
    """One SQL transaction."""
    get_experiment_report_s: float = 120.0
    """The server reads what the experiment's users were shown and did."""
    check_health_s: float = 2.0


DEFAULT_RETRY: Final = RetryPolicy()
DEFAULT_TIMEOUTS: Final = Timeouts()

DEFAULT_OPTIONS: Final[Mapping[str, int | str]] = {
    "grpc.primary_user_agent": f"keek/{VERSION}",
    # A dead connection is noticed in 40 s. Pings only while calls run. In a silent watch, gRPC sends
    # one a minute: Keek's server allows that; one with gRPC's own limits would end the connection at
    # the third. No other default deadline lets a call stay silent for so long.
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.keepalive_permit_without_calls": 0,
    # gRPC's own 120 s would leave a service without its feeds long after the server is back.
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 3_000,
    # An image to search for may have 8 MiB.
    "grpc.max_send_message_length": 9 * _MIB,
    "grpc.max_receive_message_length": 8 * _MIB,
    # A request that outgrows this buffer (256 KiB by default, less than an import's batch) would
    # silently not be retried.
    "grpc.per_rpc_retry_buffer_size": 9 * _MIB,
}
"""gRPC's channel arguments, each overridable by its name."""


_LOCAL: Final = re.compile(r"(\w+:/*)?(localhost|127(\.\d+){3}|\[::1\])(:\d+)?")
"""Targets that no proxy can reach: to it they would be itself."""


def service_config(retry: RetryPolicy | None) -> str:
    """gRPC's service config as JSON: round robin over all addresses, and the retries.

    Retries stop when more than about one call in ten fails, so that they do not keep an
    overloaded server down (gRFC A6, retry throttling).
    """
    config: dict[str, object] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retry is not None:
        policy = {
            "maxAttempts": retry.max_attempts,
            "initialBackoff": f"{retry.initial_backoff_s:.6f}s",
            "maxBackoff": f"{retry.max_backoff_s:.6f}s",
            "backoffMultiplier": retry.backoff_multiplier,
            "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
        }
        # gRPC would send an upload again from where the call began, and keep that much in memory. The
        # client goes on from what has arrived.
        upload = {"name": [{"service": "keek.v1.VideoService", "method": "UploadVideo"}]}
        config["methodConfig"] = [{"name": [{}], "retryPolicy": policy}, upload]
        config["retryThrottling"] = {"maxTokens": 100, "tokenRatio": 0.1}
    return json.dumps(config)


def channel_options(
    target: str, retry: RetryPolicy | None, overrides: Mapping[str, int | str] | None = None
) -> list[tuple[str, int | str]]:
    """Channel arguments for `grpc.insecure_channel` and its kin; `overrides` win."""
    own: dict[str, int | str] = {
        **({"grpc.enable_http_proxy": 0} if _LOCAL.fullmatch(target) else {}),
        "grpc.enable_retries": int(retry is not None),
        "grpc.service_config": service_config(retry),
    }
    return list({**DEFAULT_OPTIONS, **own, **(overrides or {})}.items())


Metadata = tuple[tuple[str, str], ...]
"""What is sent beside a request."""


def bearer_metadata(token: str) -> Metadata:
    """The metadata that show a token.

    Raises:
        ValueError: It is empty, or has characters that no token has: gRPC would not send it.
    """
    if not re.fullmatch(r"[!-~]+", token):
        raise ValueError("the admin token must be printable ASCII without spaces, and not empty")
    return (("authorization", f"Bearer {token}"),)
