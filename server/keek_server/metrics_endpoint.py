"""Where Prometheus reads metrics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from keek_server.errors import SetupError

WORKERS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that tells prometheus_client where a worker writes; it must be set when that is imported."""


@contextmanager
def metrics_endpoint(address: str, registry: CollectorRegistry = REGISTRY) -> Iterator[None]:
    """Answers on host:port, in a thread of its own, while the block runs; IPv6 is written `[::1]:9100`.

    Raises:
        SetupError: When the address cannot be bound.
    """
    host, _, port = address.rpartition(":")
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except (OSError, ValueError, OverflowError) as error:
        raise SetupError(f"cannot listen on {address}: {error} (KEEK_METRICS_LISTEN)") from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
