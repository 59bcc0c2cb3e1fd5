"""Both clients over TLS."""

import shutil
import subprocess
from collections.abc import AsyncIterator

import grpc
import pytest
from client_drivers import DRIVERS, DriverType
from client_server import Server, serve

import keek

OPENSSL = shutil.which("openssl")

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="openssl, which makes the certificate, is not here")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A new private key and its self-signed certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=keek \
        -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run([str(OPENSSL), *command.split()], check=True, capture_output=True, timeout=30)
    return key.read_bytes(), certificate.read_bytes()


@pytest.fixture
async def server(certificate: tuple[bytes, bytes]) -> AsyncIterator[Server]:
    async with serve(grpc.ssl_server_credentials([certificate])) as running:
        yield running


@pytest.mark.parametrize("connect", DRIVERS)
async def test_a_client_with_credentials_speaks_tls(
    connect: DriverType, server: Server, certificate: tuple[bytes, bytes]
) -> None:
    driver = connect(server.target, credentials=grpc.ssl_channel_credentials(certificate[1]))
    assert (await driver.call("list_feed", "u1")).release_id == "r1"
    await driver.close()


@pytest.mark.parametrize("connect", DRIVERS)
async def test_a_certificate_that_is_not_trusted_is_not_accepted(connect: DriverType, server: Server) -> None:
    driver = connect(server.target, credentials=grpc.ssl_channel_credentials())
    with pytest.raises(keek.UnavailableError):
        await driver.call("list_feed", "u1")
    await driver.close()
    assert server.faults.attempts["ListFeed"] == 0


@pytest.mark.parametrize("connect", DRIVERS)
async def test_a_client_without_credentials_does_not_reach_a_tls_server(
    connect: DriverType, server: Server
) -> None:
    driver = connect(server.target)
    with pytest.raises(keek.UnavailableError):
        await driver.call("list_feed", "u1")
    await driver.close()
    assert server.faults.attempts["ListFeed"] == 0
