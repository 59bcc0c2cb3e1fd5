"""kill -9 of the publisher at each step: the old release goes on, the next publish succeeds and tidies up."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from gate_towers import user_tower, video_tower
from onnx import save
from publisher import STEPS

from keek_server.embedded import EmbeddedStack
from keek_server.releases.manifest import Manifest
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import Release
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.towers.client import open_towers
from keek_server.towers.contract import USER_TOWER
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import import_dataset
from keek_training.publishing.publish import publish
from keek_training.publishing.source import TowerSource
from keek_training.runs import Run

ACTIVE = ("before the servers are told", "before old folders are removed")
"""Steps after which the new release is active."""


@pytest.fixture(scope="module")
async def settings(
    settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Settings]:
    async with EmbeddedStack(settings_in(tmp_path_factory.mktemp("crashes"))) as stack:
        async with open_database(stack.settings) as database:
            await import_dataset(
                database, open_dataset("synth:users=20,videos=60,interactions=400,end=2026-01-01")
            )
        yield stack.settings


@pytest.fixture(scope="module")
async def run(settings: Settings) -> Run:
    run = Run(settings.data_dir / "runs" / "small")
    run.start()
    save(user_tower(), run.user_tower)
    save(video_tower(), run.video_tower)
    run.write_metrics({}, [])
    run.write_export({"history_length": 5})
    await publish(TowerSource.of_run(run), settings)
    return run


async def killed(settings: Settings, run: Run, step: str) -> int:
    """Publishes in a process of its own, which ends at a step; its exit code."""
    token = settings.triton_control_token
    variables = {
        "KEEK_DATA_DIR": str(settings.data_dir),
        "KEEK_MODEL_REPOSITORY": str(settings.model_repository),
        "KEEK_DATABASE_URL": settings.database_url,
        "KEEK_REDIS_URL": settings.redis_url or "",
        "KEEK_TRITON_URL": settings.triton_url or "",
        "KEEK_TRITON_CONTROL_TOKEN": token.get_secret_value() if token else "",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        Path(__file__).with_name("publisher.py"),
        run.folder,
        step,
        env={**os.environ, **variables},
    )
    async with asyncio.timeout(100):
        return await process.wait()


@pytest.mark.parametrize("step", STEPS)
async def test_after_a_kill_the_old_release_serves_and_the_next_publish_tidies_up(
    settings: Settings, run: Run, step: str
) -> None:
    async with open_database(settings) as database, open_towers(settings) as towers:
        registry = ReleaseRegistry(database)
        before = await registry.active()
        assert before is not None
        assert await killed(settings, run, step) == -signal.SIGKILL
        active = await registry.active()
        assert active is not None
        assert (active != before) == (step in ACTIVE)
        serving = Release.open(settings.release_dir / active)
        assert await towers.has(USER_TOWER, serving.manifest.user_tower.version)

        after = await publish(TowerSource.of_run(run), settings)
        assert await registry.active() == after.release_id
        assert after.user_tower.version > serving.manifest.user_tower.version
        known = {each.release_id: each for each in await registry.list(100)}
        folders = {path.name for path in settings.release_dir.iterdir() if path.is_dir()}
        assert folders == {name for name, each in known.items() if each.state == 1}
        kept = [Manifest.model_validate(known[name].manifest) for name in folders]
        for tower in ("user_tower", "video_tower"):
            found = {path.name for path in (settings.model_repository / tower).iterdir()}
            assert found == {"config.pbtxt", *(str(getattr(each, tower).version) for each in kept)}
