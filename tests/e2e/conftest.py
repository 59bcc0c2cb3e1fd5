"""A server with a release that was really trained, exported and published, once for all tests here."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from patience import DEADLINES, TIMEOUTS
from serving import WITH_CLIP, Served, command

import keek.aio
from keek_server.app import open_app
from keek_server.embedded import EmbeddedStack

DATA = "synth:videos=600,users=300,interactions=15000,seed=5"
TRAINS_S = 900
"""The longest that a test may take which trains, or is the first that needs the release. A machine that is
busy with much else takes minutes for either."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives the tests here that time."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(TRAINS_S))


@pytest.fixture(scope="session")
async def published(stack: EmbeddedStack) -> EmbeddedStack:
    """The stack after import, train, export and publish, each by its command."""
    config = stack.settings.data_dir / "train.json"
    # Compiling takes longer than the few steps of a small data set.
    config.write_text('{"epochs": 2, "jit": false}')
    for arguments in (
        ("import", DATA),
        ("train", "--run", "e2e", "--config", str(config)),
        ("export", "--run", "e2e"),
        *([("export-clip",)] if WITH_CLIP else []),
        ("publish", "--run", "e2e"),
    ):
        done = await asyncio.to_thread(command, stack, "keek-train", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    return stack


@pytest.fixture(scope="session")
async def served(published: EmbeddedStack) -> AsyncIterator[Served]:
    """A server of the published release; its projection has caught up with the log."""
    settings = published.settings.model_copy(
        update={
            "listen": "127.0.0.1:0",
            "interactions_listen": "127.0.0.1:0",
            **DEADLINES,
        }
    )
    async with open_app(settings) as app:
        address = f"127.0.0.1:{app.port}"
        async with keek.aio.Client(address, timeouts=TIMEOUTS) as client:
            await asyncio.wait_for(app.live.wait(), 60)
            assert await app.projector.wait_for(15_000, 60)
            yield Served(published, app, client, address)
