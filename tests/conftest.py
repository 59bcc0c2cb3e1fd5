"""Fixtures that several test files share: the embedded servers, started once for all of them."""

import gc
import importlib
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as examples
from patience import UNHURRIED

from keek_server.embedded import EmbeddedStack
from keek_server.embedded.postgres import EmbeddedPostgres, running_postgres
from keek_server.settings import Settings

with suppress(ImportError):
    # A part of torch. Loaded after TensorFlow, its copy of LLVM ends the process.
    importlib.import_module("triton._C.libtriton")

# An example that a busy machine takes long for shows no fault.
examples.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
examples.load_profile("tests")

ROOT = Path(__file__).parent.parent
STARTUP_TIMEOUT_S = 60.0
"""Tests may share a small machine with much else."""


def copy_configurations(target: Path) -> Path:
    """A model repository with the committed `config.pbtxt` files and no version."""
    for config in sorted((ROOT / "model_repository").glob("*/config.pbtxt")):
        (target / config.parent.name).mkdir(parents=True)
        shutil.copy(config, target / config.parent.name)
    return target


def embedded_settings(directory: Path) -> Settings:
    """Settings of a stack of its own in a directory: no servers are given, no port is fixed."""
    repository = directory / "models"
    return Settings(
        data_dir=directory / "data",
        model_repository=repository if repository.exists() else copy_configurations(repository),
        triton_environment=ROOT / ".venv-triton",
        redis_url=None,
        triton_url=None,
        listen="127.0.0.1:0",
        startup_timeout_s=STARTUP_TIMEOUT_S,
        **UNHURRIED,
    )


@pytest.fixture(scope="session")
def frozen() -> Iterator[None]:
    """Objects that garbage collection does not look at, given back at the end."""
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def short_collections(frozen: None) -> None:
    """Garbage collection looks at nothing that was there before a module.

    Of all that the whole suite loads, a full one takes up to a second: calls to servers within the test's
    process would miss their deadlines. Servers do the same.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def stack_directory() -> Iterator[Path]:
    """Where the shared stack lives."""
    with tempfile.TemporaryDirectory(prefix="keek-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
async def stack(stack_directory: Path) -> AsyncIterator[EmbeddedStack]:
    """A running stack for all tests; `stack.settings` says where everything is.

    Its model repository has no version yet: tests publish their own, each under a version
    number of its own, into `stack.settings.model_repository`. It fails, and does not skip, when
    Triton's environment is missing: `make test` sets that up.
    """
    async with EmbeddedStack(embedded_settings(stack_directory)) as running:
        yield running


@pytest.fixture(scope="session")
def settings_in() -> Callable[[Path], Settings]:
    """Makes settings for a further stack, in a directory of its own."""
    return embedded_settings


@pytest.fixture
def stack_settings() -> Iterator[Settings]:
    """Settings for a stack that one test starts by itself, and may break."""
    with tempfile.TemporaryDirectory(prefix="keek-") as directory:
        yield embedded_settings(Path(directory))


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A running PostgreSQL for all tests. It fails, and does not skip, when there is none."""
    async with running_postgres(ready_timeout_s=STARTUP_TIMEOUT_S) as process:
        yield process.service


@pytest.fixture
async def postgres_url(postgres: EmbeddedPostgres) -> AsyncIterator[str]:
    """SQLAlchemy URL of a new, empty PostgreSQL database, for one test."""
    name = f"test_{secrets.token_hex(8)}"
    connection = await postgres.connect()
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        yield postgres.url_of(name)
        # By force: a test that failed may have left connections open.
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()
