"""Publishing through a real Triton: one publisher at a time, nothing half live, nothing kept for ever."""

import asyncio
import dataclasses
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from gate_towers import video_tower
from published import active, exported, folders, stack_with_videos, versions
from publisher import measure, preflight, report

from keek_server.clock import now_us
from keek_server.embedded import EmbeddedStack
from keek_server.errors import SetupError, UnavailableError
from keek_server.releases.fleet import Fleet, ServerStatus
from keek_server.releases.manifest import GateResult, Manifest
from keek_server.releases.plan import ReleaseState, Trial, TrialKind
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import Release
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.storage.tables import releases
from keek_server.towers.client import open_towers
from keek_server.towers.contract import USER_TOWER
from keek_training.hourly.state import LogRange, Round
from keek_training.hourly.steps import HourlySteps
from keek_training.publishing import building, embedding, examination
from keek_training.publishing.embedding import embed
from keek_training.publishing.journal import Journal
from keek_training.publishing.kept import KeptRelease
from keek_training.publishing.lock import LOCK_FILE, publishing_alone
from keek_training.publishing.publish import HeldUpError, Wishes, publish
from keek_training.publishing.repository import MODEL_FILE, prune_versions, remove_aside
from keek_training.publishing.source import TowerSource

pytestmark = pytest.mark.usefixtures("unhurried_triton")


@pytest.fixture(scope="module")
async def stack(
    settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EmbeddedStack]:
    """Of this file's own: publishing removes what no release of its own database uses."""
    async with stack_with_videos(settings_in(tmp_path_factory.mktemp("publishing"))) as stack:
        yield stack


@pytest.fixture
def settings(stack: EmbeddedStack) -> Settings:
    return stack.settings


@pytest.fixture
def run(tmp_path: Path) -> TowerSource:
    return exported(tmp_path / "monday", video_tower())


@pytest.fixture
def light_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what says nothing about gates, which take seconds."""
    monkeypatch.setattr(examination, "preflight", preflight)
    monkeypatch.setattr(examination, "measure", measure)
    monkeypatch.setattr(examination.Examination, "_report", report)


def models_of(settings: Settings, release: Manifest) -> list[Path]:
    entries = KeptRelease.model_validate(release.model_dump()).by_name
    return [
        settings.model_repository / model / str(entry.version) / MODEL_FILE
        for model, entry in entries.items()
    ]


async def test_of_two_publishers_at_once_one_is_refused_and_the_others_release_is_whole(
    settings: Settings, run: TowerSource
) -> None:
    done = await asyncio.gather(publish(run, settings), publish(run, settings), return_exceptions=True)
    release, refused = sorted(done, key=lambda each: isinstance(each, BaseException))
    assert isinstance(release, Manifest)
    assert isinstance(refused, SetupError)
    assert str(refused).startswith("run monday (process ")
    assert "\n" not in str(refused)
    assert await active(settings) == release.release_id
    assert all(path.is_file() for path in models_of(settings, release))
    assert Release.open(settings.release_dir / release.release_id).manifest == release


@pytest.mark.usefixtures("light_gates")
async def test_what_another_publisher_is_writing_is_left_alone(settings: Settings, run: TowerSource) -> None:
    settings.release_dir.mkdir(parents=True, exist_ok=True)
    unfinished = [settings.model_repository / "user_tower" / "90.tmp", settings.release_dir / "r90.tmp"]
    before = await active(settings)
    with publishing_alone(settings, "tuesday"):
        for path in unfinished:
            path.mkdir()
        with pytest.raises(SetupError, match=r"^run tuesday \(process \d+ on .*: publish again when"):
            await publish(run, settings)
        assert all(path.is_dir() for path in unfinished)
    assert await active(settings) == before
    # The lock was given back, and what is there now was left by nobody who still writes.
    await publish(run, settings)
    assert not any(path.exists() for path in unfinished)


@pytest.mark.parametrize("shared", ["models", "releases"])
async def test_publishers_that_share_one_of_both_folders_exclude_each_other(
    settings: Settings, run: TowerSource, tmp_path: Path, shared: str
) -> None:
    other = {"data_dir": tmp_path} if shared == "models" else {"model_repository": tmp_path}
    with (
        publishing_alone(settings.model_copy(update=other), "tuesday"),
        pytest.raises(SetupError, match="run tuesday"),
    ):
        await publish(run, settings)


@pytest.mark.usefixtures("light_gates")
async def test_a_release_whose_model_has_gone_is_not_registered(
    settings: Settings, run: TowerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await active(settings)
    names = folders(settings)

    async def embed_and_lose(towers: object, version: int, *others: object) -> object:
        vectors = await embed(towers, version, *others)  # type: ignore[arg-type]
        shutil.rmtree(settings.model_repository / "video_tower" / str(version))
        return vectors

    monkeypatch.setattr(building, "embed", embed_and_lose)
    with pytest.raises(SetupError, match=r"video_tower.*model\.onnx has gone"):
        await publish(run, settings)
    assert await active(settings) == before
    assert {name for name in folders(settings) if not name.endswith(".tmp")} == names


@pytest.mark.usefixtures("light_gates")
async def test_folders_of_releases_that_are_not_kept_are_removed_and_their_rows_stay(
    settings: Settings, run: TowerSource
) -> None:
    foreign = settings.release_dir / "copied by somebody"
    foreign.mkdir(exist_ok=True)
    published = [await publish(run, settings) for _ in range(settings.releases_kept + 2)]
    ids = [release.release_id for release in published]
    assert folders(settings) == {*ids[-settings.releases_kept :], foreign.name}

    # An operator goes back: what serves then stays, however old it becomes.
    async with open_database(settings) as database:
        await ReleaseRegistry(database).activate(ids[-3], "went back")
    held = Release.open(settings.release_dir / ids[-2])
    newest = (await publish(run, settings)).release_id
    assert folders(settings) == {ids[-3], ids[-2], ids[-1], newest, foreign.name}
    last = (await publish(run, settings)).release_id
    assert folders(settings) == {ids[-1], newest, last, foreign.name}
    for release_id in (ids[-1], newest, last):
        release = Release.open(settings.release_dir / release_id)
        assert all(path.is_file() for path in models_of(settings, release.manifest))
    # A server has mapped one that is removed now, and goes on with it.
    assert len(held.index.search(np.asarray(held.corpus.vectors[:2]), 10)[0]) == 2
    async with open_database(settings) as database, database.read() as connection:
        registered = set((await connection.execute(sa.select(releases.c.release_id))).scalars())
    assert registered >= {*ids, newest, last}


@pytest.mark.usefixtures("light_gates")
def test_versions_that_cannot_be_removed_keep_no_others_from_going(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [tmp_path / "user_tower" / str(version) for version in (1, 2, 3)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(b"model")
    rmtree = shutil.rmtree

    def refused(folder: Path) -> None:
        if folder.name.startswith("1"):
            raise PermissionError("not ours")
        rmtree(folder)

    monkeypatch.setattr(shutil, "rmtree", refused)
    prune_versions(tmp_path, [], 2)
    assert "a version that is not needed any more stays: not ours" in caplog.text
    # Nor does what is left of it keep the next publish from beginning.
    remove_aside(tmp_path / "user_tower")
    assert {folder.name for folder in (tmp_path / "user_tower").iterdir()} == {"1.tmp", "3"}
    monkeypatch.undo()
    remove_aside(tmp_path / "user_tower")
    assert [folder.name for folder in (tmp_path / "user_tower").iterdir()] == ["3"]


def test_a_repository_that_is_not_there_is_said(settings: Settings, tmp_path: Path) -> None:
    missing = settings.model_copy(update={"model_repository": tmp_path / "none"})
    with (
        pytest.raises(SetupError, match=r"cannot write to .*none: No such file"),
        publishing_alone(missing, "x"),
    ):
        pass
    assert not (tmp_path / "none" / LOCK_FILE).exists()


async def test_a_release_can_wait_to_be_tried(settings: Settings, run: TowerSource) -> None:
    live = (await publish(run, settings)).release_id
    ready = (await publish(run, settings, Wishes(activate=False))).release_id
    assert await active(settings) == live
    async with open_database(settings) as database:
        assert (await ReleaseRegistry(database).get(ready)).state is ReleaseState.READY
        await ReleaseRegistry(database).activate(ready, "tried")
    assert Release.open(settings.release_dir / ready).id == ready


@pytest.mark.usefixtures("light_gates")
async def test_a_trial_that_begins_while_the_hourly_job_publishes_goes_on(
    settings: Settings, run: TowerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(settings.data_dir / "runs" / "monday", video_tower())
    exported(settings.data_dir / "runs" / "hourly-1", video_tower())
    tried = await publish(run, settings, Wishes(activate=False))
    live = (await publish(run, settings)).release_id
    current = Round(run="hourly-1", base="monday", new=LogRange(log_id="log", after_seq=0, last_seq=1))
    steps = HourlySteps(settings)

    async def measured(*_: object, **__: object) -> list[GateResult]:
        async with open_database(settings) as database:
            trial = Trial(tried.release_id, TrialKind.CANARY, 5.0)
            await ReleaseRegistry(database).start_trial(trial, "by an engineer")
        return preflight()

    with monkeypatch.context() as patch:
        patch.setattr(examination, "measure", measured)
        with pytest.raises(HeldUpError, match=r"is ready, and not active: the plan has changed"):
            await asyncio.to_thread(steps.publish, current)
    async with open_database(settings) as database:
        registry = ReleaseRegistry(database)
        plan = await registry.plan()
        assert plan is not None
        assert (plan.release_id, plan.trial is not None) == (live, True)
        newest = (await registry.list(1))[0]
        assert (newest.manifest["source"], newest.state) == ("hourly-1", ReleaseState.READY)
        await registry.end_trial("it is over")
    assert await asyncio.to_thread(steps.publish, current) == newest.release_id
    assert await active(settings) == newest.release_id


@pytest.mark.usefixtures("light_gates")
async def test_when_triton_goes_away_the_new_is_withdrawn_and_the_next_publish_goes_on(
    settings: Settings, run: TowerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await publish(run, settings)
    names, before = folders(settings), versions(settings)

    async def not_built(*_: object, **__: object) -> object:
        raise UnavailableError("Triton went away")

    with monkeypatch.context() as patch:
        patch.setattr(building, "embed_users", not_built)
        with pytest.raises(UnavailableError, match="went away"):
            await publish(run, settings)
    assert (folders(settings), versions(settings)) == (names, before)
    journal = Journal.load(settings.release_dir)
    assert journal is not None
    async with open_towers(settings) as towers:
        assert await towers.has(USER_TOWER, live.user_tower.version)
        assert not await towers.has(USER_TOWER, journal.version)

    async def not_called(*_: object) -> object:
        raise AssertionError("the corpus is embedded already")

    monkeypatch.setattr(embedding._Work, "_load", not_called)
    done = await publish(run, settings)
    assert (done.release_id, done.user_tower.version) == (journal.release_id, journal.version)
    assert Journal.load(settings.release_dir) is None
    assert await active(settings) == done.release_id


@pytest.mark.usefixtures("light_gates")
async def test_a_number_is_not_used_again_when_what_had_it_has_gone(
    settings: Settings, run: TowerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton may know another file under it."""
    before = (await publish(run, settings)).user_tower.version

    async def not_built(*_: object, **__: object) -> object:
        raise SetupError("no")

    with monkeypatch.context() as patch:
        patch.setattr(building, "embed_users", not_built)
        with pytest.raises(SetupError, match=r"^no$"):
            await publish(run, settings)
    assert Journal.load(settings.release_dir) is None
    assert (await publish(run, settings)).user_tower.version == before + 2


@pytest.mark.usefixtures("light_gates")
async def test_who_is_told_to_wait_publishes_when_the_other_one_is_done(
    settings: Settings, run: TowerSource
) -> None:
    with pytest.raises(SetupError, match="run tuesday"), publishing_alone(settings, "tuesday"):
        await publish(run, settings, Wishes(wait_s=0.3))
    with publishing_alone(settings, "tuesday"):
        waiting = asyncio.create_task(publish(run, settings, Wishes(wait_s=60.0)))
        await asyncio.sleep(0.5)
        assert not waiting.done()
    done = await waiting
    assert await active(settings) == done.release_id


@pytest.mark.usefixtures("light_gates")
async def test_what_a_server_has_open_stays_and_a_server_that_does_not_follow_is_named(
    settings: Settings, run: TowerSource, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "keek_training")
    # The server is not heard of between one publish and the next.
    own = {"releases_kept": 2, "publish_converge_s": 0.1, "server_stale_s": 3600.0}
    few = settings.model_copy(update=own)
    held = await publish(run, few)
    now = now_us()
    async with open_database(settings) as database, open_towers(settings) as towers:
        fleet, registry = Fleet(database, stale_s=3600.0), ReleaseRegistry(database)
        status = ServerStatus("s1", "host:1", now, now, 0, held_release_ids=[held.release_id], problem="busy")
        await fleet.beat(status)
        for _ in range(3):
            await publish(run, few)
        assert "not served yet by host:1 (busy)" in caplog.text
        assert (await registry.get(held.release_id)).state is ReleaseState.READY
        assert Release.open(settings.release_dir / held.release_id).id == held.release_id
        assert await towers.has(USER_TOWER, held.user_tower.version)

        await fleet.beat(dataclasses.replace(status, held_release_ids=[], plan_seq=10**9, problem=""))
        caplog.clear()
        await publish(run, few)
        assert "all 1 servers run it" in caplog.text
        assert (await registry.get(held.release_id)).state is ReleaseState.REMOVED
        assert held.release_id not in folders(settings)
        assert not await towers.has(USER_TOWER, held.user_tower.version)
        await fleet.leave("s1")
