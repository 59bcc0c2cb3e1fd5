"""kill -9 of the publisher at each step: the old release goes on, and the next publish finishes what it can,
or removes it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from gate_towers import ID_TABLE, user_tower, video_tower
from onnx import save
from patience import UNHURRIED_VARIABLES
from publisher import PART, PRUNING, REMOVING, STEPS, measure, preflight, report
from tritonclient.grpc import aio as triton

from keek_server.embedded import EmbeddedStack
from keek_server.errors import SetupError
from keek_server.releases.manifest import Manifest
from keek_server.releases.plan import ReleaseState
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import Release
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.towers.client import open_towers
from keek_server.towers.contract import TOWERS, USER_TOWER, VIDEO_TOWER
from keek_server.towers.control import control_headers
from keek_server.towers.features import video_features
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import import_dataset
from keek_training.publishing import examination
from keek_training.publishing.examination import Examination
from keek_training.publishing.journal import CHECKPOINT_FILE, JOURNAL_FILE, Journal
from keek_training.publishing.lock import LOCK_FILE
from keek_training.publishing.publish import Wishes, publish
from keek_training.publishing.source import TowerSource
from keek_training.runs import Run

pytestmark = pytest.mark.usefixtures("unhurried_triton")

ORDER = list(STEPS)
JOURNALED = ORDER[ORDER.index("before a number is taken") : ORDER.index("before the journal is removed")]
"""Steps after which there is something to go on with."""
ACTIVE = ORDER[ORDER.index("before the journal is removed") :]
"""Steps after which the new release is active."""


def exported(settings: Settings, name: str, scale: float) -> Run:
    run = Run(settings.data_dir / "runs" / name)
    run.start()
    save(user_tower(), run.user_tower)
    save(video_tower(ID_TABLE * np.float32(scale)), run.video_tower)
    run.write_metrics({}, [])
    run.write_export({"history_length": 5})
    return run


@pytest.fixture(autouse=True)
def _light_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "preflight", preflight)
    monkeypatch.setattr(examination, "measure", measure)
    monkeypatch.setattr(Examination, "_report", report)


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
    run = exported(settings, "small", 1.0)
    await publish(TowerSource.of_run(run), settings)
    return run


@pytest.fixture(scope="module")
def other_run(settings: Settings) -> Run:
    return exported(settings, "other", 1.5)


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
        **UNHURRIED_VARIABLES,
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


async def left_behind(settings: Settings, run: Run, step: str) -> Journal:
    """What a publisher that was killed at a step had under way."""
    assert await killed(settings, run, step) == -signal.SIGKILL
    journal = Journal.load(settings.release_dir)
    assert journal is not None
    return journal


async def loaded(settings: Settings) -> dict[str, set[str]]:
    """The versions of each tower that Triton has ready."""
    headers = control_headers(settings.triton_control_token)
    async with triton.InferenceServerClient(settings.triton_url) as client:
        index = await client.get_model_repository_index(headers=headers, client_timeout=10.0)
    names = {tower.model for tower in TOWERS}
    return {
        name: {each.version for each in index.models if each.name == name and each.state == "READY"}
        for name in names
    }


async def check_serving(settings: Settings, database: Database) -> Manifest:
    """The active release's files are there, and Triton answers for it."""
    active = await ReleaseRegistry(database).active()
    assert active is not None
    release = Release.open(settings.release_dir / active)
    video_id = release.corpus.ids.id_of(0)
    async with open_towers(settings) as towers:
        assert await towers.has(USER_TOWER, release.manifest.user_tower.version)
        vector = await towers.vectors(
            VIDEO_TOWER,
            release.manifest.video_tower.version,
            video_features([video_id], [""], [()], [0.0]),
            deadline_s=10.0,
        )
    # These towers make a vector of the id alone, where there is no clip vector.
    np.testing.assert_allclose(vector[0], release.corpus.vectors[0], rtol=1e-5)
    return release.manifest


async def check_tidy(settings: Settings, database: Database) -> None:
    """There is nothing but what the registry knows: on the disk, in the repository and in Triton."""
    listed = await ReleaseRegistry(database).list(100)
    kept = {each.release_id: each for each in listed if each.state is ReleaseState.READY}
    assert {path.name for path in settings.release_dir.iterdir()} == {*kept, LOCK_FILE}
    manifests = [Manifest.model_validate(each.manifest) for each in kept.values()]
    ready = await loaded(settings)
    for tower in ("user_tower", "video_tower"):
        versions = {str(getattr(each, tower).version) for each in manifests}
        found = {path.name for path in (settings.model_repository / tower).iterdir()}
        assert found == {"config.pbtxt", *versions}
        assert ready[tower] == versions


@pytest.mark.parametrize("step", STEPS)
async def test_after_a_kill_the_old_release_serves_and_the_next_publish_goes_on(
    settings: Settings, run: Run, step: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with open_database(settings) as database:
        before = await check_serving(settings, database)
        assert await killed(settings, run, step) == -signal.SIGKILL
        serving = await check_serving(settings, database)
        assert (serving.release_id != before.release_id) == (step in ACTIVE)
        journal = Journal.load(settings.release_dir)

        capfd.readouterr()
        after = await publish(TowerSource.of_run(run), settings)
        assert (await check_serving(settings, database)).release_id == after.release_id
        assert after.release_id != serving.release_id
        assert after.user_tower.version > serving.user_tower.version
        assert (journal is not None) == (step in JOURNALED or step == "before the journal is removed")
        if step in JOURNALED:
            assert journal is not None
            assert (after.release_id, after.user_tower.version) == (journal.release_id, journal.version)
        if step == "while the corpus is embedded":
            # Two parts were kept: it begins behind them.
            assert f"{2 * PART}/60" in capfd.readouterr().err
        await check_tidy(settings, database)


@pytest.mark.parametrize("step", [*REMOVING, "while the corpus is embedded"])
async def test_what_a_killed_publisher_left_of_other_towers_is_removed(
    settings: Settings, run: Run, other_run: Run, step: str
) -> None:
    async with open_database(settings) as database:
        before = await check_serving(settings, database)
        left = step if step in STEPS else "before it is registered"
        journal = await left_behind(settings, other_run, left)
        if step in REMOVING:
            assert await killed(settings, run, step) == -signal.SIGKILL
        assert await check_serving(settings, database) == before

        after = await publish(TowerSource.of_run(run), settings)
        assert after.source == run.name
        assert after.user_tower.version > journal.version
        assert not (settings.release_dir / journal.release_id).exists()
        await check_serving(settings, database)
        await check_tidy(settings, database)


async def check_next(settings: Settings, run: Run, database: Database) -> None:
    """The next publish works, and leaves nothing behind."""
    await publish(TowerSource.of_run(run), settings)
    await check_serving(settings, database)
    await check_tidy(settings, database)


async def test_an_old_version_that_was_removed_in_part_does_not_keep_triton_from_the_next(
    settings: Settings, run: Run
) -> None:
    for _ in range(settings.releases_kept):
        await publish(TowerSource.of_run(run), settings)
    async with open_database(settings) as database:
        assert await killed(settings, run, PRUNING) == -signal.SIGKILL
        # Whenever Triton reads the repository, it finds whole versions.
        found = {path.parent for path in settings.model_repository.glob("*_tower/*/model.onnx")}
        assert found == {
            path for path in settings.model_repository.glob("*_tower/*") if path.name.isdecimal()
        }
        await check_next(settings, run, database)


async def test_a_version_without_its_model_is_removed_by_the_next_publish(
    settings: Settings, run: Run
) -> None:
    async with open_database(settings) as database:
        version = (await check_serving(settings, database)).user_tower.version + 1
        (settings.model_repository / "user_tower" / str(version)).mkdir()
        await check_next(settings, run, database)


async def test_a_version_that_serves_and_has_lost_its_model_is_said_and_stays(
    settings: Settings, run: Run
) -> None:
    async with open_database(settings) as database:
        version = (await check_serving(settings, database)).user_tower.version
        model = settings.model_repository / "user_tower" / str(version) / "model.onnx"
        aside = model.rename(model.with_name("aside"))
        with pytest.raises(SetupError, match=rf"user_tower/{version} has lost its model.onnx"):
            await publish(TowerSource.of_run(run), settings)
        assert aside.rename(model).is_file()
        await check_serving(settings, database)


async def test_a_complete_release_that_is_damaged_or_judged_by_other_terms_is_built_again(
    settings: Settings, run: Run
) -> None:
    async with open_database(settings) as database:
        for damage in (True, False):
            journal = await left_behind(settings, run, "before it is registered")
            popular = settings.release_dir / journal.release_id / "popular.npy"
            if damage:
                popular.write_bytes(popular.read_bytes()[:-1] + b"x")
            written = popular.stat().st_mtime_ns
            bounds = {} if damage else {"gate_max_norm": 900.0}
            after = await publish(TowerSource.of_run(run), settings.model_copy(update=bounds))
            assert after.release_id == journal.release_id
            assert popular.stat().st_mtime_ns > written
            await check_serving(settings, database)
            await check_tidy(settings, database)


async def test_what_was_gone_back_from_is_not_brought_back_by_the_next_publish(
    settings: Settings, run: Run
) -> None:
    async with open_database(settings) as database:
        registry = ReleaseRegistry(database)
        assert await killed(settings, run, "before the journal is removed") == -signal.SIGKILL
        crashed = await check_serving(settings, database)
        await registry.roll_back("it was bad")
        after = await publish(TowerSource.of_run(run), settings)
        assert after.release_id != crashed.release_id
        await check_tidy(settings, database)


async def test_a_release_that_is_not_to_be_activated_is_finished_as_that(
    settings: Settings, run: Run
) -> None:
    async with open_database(settings) as database:
        before = await check_serving(settings, database)
        journal = await left_behind(settings, run, "before it is activated")
        ready = await publish(TowerSource.of_run(run), settings, Wishes(activate=False))
        assert ready.release_id == journal.release_id
        assert await check_serving(settings, database) == before
        assert not (settings.release_dir / JOURNAL_FILE).exists()
        assert not (settings.release_dir / CHECKPOINT_FILE).exists()


async def test_what_was_registered_already_stays_ready_when_other_towers_come(
    settings: Settings, run: Run, other_run: Run
) -> None:
    async with open_database(settings) as database:
        journal = await left_behind(settings, other_run, "before it is activated")
        after = await publish(TowerSource.of_run(run), settings)
        assert after.release_id != journal.release_id
        await check_tidy(settings, database)
        registry = ReleaseRegistry(database)
        assert (await registry.get(journal.release_id)).state is ReleaseState.READY
        await registry.activate(journal.release_id, "it was whole")
        await check_serving(settings, database)
