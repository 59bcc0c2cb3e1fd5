"""Fixtures of the tests that hold on every database."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Settings that name an empty database of each kind in turn."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else ""
    folder = tmp_path / "data"
    folder.mkdir()
    # A feed's read, and a transaction, may take longer here than they may on a server.
    return Settings(data_dir=folder, database_url=url, sql_read_deadline_s=10.0, sql_deadline_s=30.0)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """That database, open."""
    async with open_database(settings) as opened:
        yield opened


@pytest.fixture(scope="module")
def unhurried_triton() -> Iterator[None]:
    """A busy one may be late to say what it has, also to the fixtures of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keek_server.towers.client._CHECK_DEADLINE_S", 30.0)
        yield
