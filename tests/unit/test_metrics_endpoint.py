"""Where metrics are read."""

import socket
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge

from keek_server.errors import SetupError
from keek_server.metrics_endpoint import metrics_endpoint


@pytest.fixture
def registry() -> CollectorRegistry:
    own = CollectorRegistry()
    Gauge("answer", "for a test", registry=own).set(42)
    return own


def free_port(family: socket.AddressFamily, host: str) -> int:
    try:
        with socket.socket(family) as held:
            held.bind((host, 0))
            port: int = held.getsockname()[1]
            return port
    except OSError:
        pytest.skip(f"this machine has no {host}")


@pytest.mark.parametrize(
    ("family", "host", "written"),
    [(socket.AF_INET, "127.0.0.1", "127.0.0.1"), (socket.AF_INET6, "::1", "[::1]")],
)
def test_metrics_are_read_at_addresses_of_both_kinds(
    registry: CollectorRegistry, family: socket.AddressFamily, host: str, written: str
) -> None:
    address = f"{written}:{free_port(family, host)}"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with (
        metrics_endpoint(address, registry),
        direct.open(f"http://{address}/metrics", timeout=30) as answer,
    ):
        assert b"answer 42.0" in answer.read()


@pytest.mark.parametrize("address", ["127.0.0.1:99999", "127.0.0.1:-1", "127.0.0.1:x", "127.0.0.1", "[::1"])
def test_what_is_no_address_is_refused_with_its_setting(registry: CollectorRegistry, address: str) -> None:
    with (
        pytest.raises(SetupError, match=r"cannot listen on .*KEEK_METRICS_LISTEN"),
        metrics_endpoint(address, registry),
    ):
        pytest.fail("it listens")
