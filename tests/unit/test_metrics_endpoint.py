"""Where metrics are read."""

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import CollectorRegistry, Gauge

from keek_server.errors import SetupError
from keek_server.metrics_endpoint import metrics_endpoint


@pytest.fixture
def registry() -> CollectorRegistry:
    own = CollectorRegistry()
    Gauge("answer", "for a test", registry=own).set(42)
    return own


@contextmanager
def held_port(family: socket.AddressFamily, host: str) -> Iterator[int]:
    """A port that no connection of others takes before the endpoint listens on it, which reuses addresses."""
    with socket.socket(family) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
        yield held.getsockname()[1]


@pytest.mark.parametrize(
    ("family", "host", "written"),
    [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")],
)
def test_metrics_are_read_at_addresses_of_both_kinds(
    registry: CollectorRegistry, family: socket.AddressFamily, host: str, written: str
) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with (
        held_port(family, host) as port,
        metrics_endpoint(f"{written}:{port}", registry),
        direct.open(f"http://{written}:{port}/metrics", timeout=30) as answer,
    ):
        assert b"answer 42.0" in answer.read()


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:x", "127.0.0.1", "[::1"])
def test_what_is_no_address_is_refused_with_its_setting(registry: CollectorRegistry, address: str) -> None:
    with (
        pytest.raises(SetupError, match=r"cannot listen on .*KEEK_METRICS_LISTEN"),
        metrics_endpoint(address, registry),
    ):
        pytest.fail("it listens")
