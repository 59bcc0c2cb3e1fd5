"""Publishing through a real Triton: one publisher at a time, nothing half live, nothing kept for ever."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from embedded_towers import ONNX_TYPES, video_tower
from onnx import ModelProto, TensorProto, helper, numpy_helper, save

from keek_server.embedded import EmbeddedStack
from keek_server.errors import SetupError
from keek_server.releases.manifest import Manifest
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import Release
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.storage.tables import releases
from keek_server.towers.contract import DIMENSION, USER_TOWER, VIDEO_TOWER
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import import_dataset
from keek_training.publishing import publish as publishing
from keek_training.publishing.embedding import embed
from keek_training.publishing.kept import RELEASES_KEPT, KeptRelease
from keek_training.publishing.lock import LOCK_FILE, publishing_alone
from keek_training.publishing.publish import publish
from keek_training.publishing.repository import MODEL_FILE
from keek_training.runs import Run

SYNTH = "synth:users=20,videos=60,interactions=400,end=2026-01-01"


def mean_tower() -> ModelProto:
    """A user tower: the mean of the history's vectors."""
    inputs = [
        helper.make_tensor_value_info(
            spec.name,
            ONNX_TYPES[spec.dtype],
            ["batch", *(dim if dim > 0 else f"{spec.name}_length" for dim in spec.shape)],
        )
        for spec in USER_TOWER.inputs
    ]
    output = helper.make_tensor_value_info("user_vector", TensorProto.FLOAT, ["batch", DIMENSION])
    node = helper.make_node("ReduceMean", ["history_vectors"], ["user_vector"], axes=[1], keepdims=0)
    graph = helper.make_graph([node], "user_tower", inputs, [output])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def not_finite(model: ModelProto) -> ModelProto:
    """A video tower whose vectors are infinite where the duration is not 0."""
    graph = model.graph
    graph.node[-1].output[0] = "finite"
    huge = numpy_helper.from_array(np.array([np.finfo(np.float32).max], np.float32), "huge")
    graph.initializer.append(huge)
    scaled = [
        helper.make_node("Mul", ["duration_s", "huge"], ["large"]),
        helper.make_node("Mul", ["large", "huge"], ["overflown"]),
        helper.make_node("Add", ["finite", "overflown"], ["video_vector"]),
    ]
    graph.node.extend(scaled)
    return model


def exported(folder: Path, videos: ModelProto) -> Run:
    run = Run(folder)
    run.start()
    save(mean_tower(), run.user_tower)
    save(videos, run.video_tower)
    run.write_metrics({}, [])
    run.write_export({"history_length": 5})
    return run


@pytest.fixture(scope="module")
async def stack(
    settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EmbeddedStack]:
    """Of this file's own: publishing removes what no release of its own database uses."""
    async with EmbeddedStack(settings_in(tmp_path_factory.mktemp("publishing"))) as stack:
        async with open_database(stack.settings) as database:
            await import_dataset(database, open_dataset(SYNTH))
        yield stack


@pytest.fixture
def settings(stack: EmbeddedStack) -> Settings:
    return stack.settings


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return exported(tmp_path / "monday", video_tower(VIDEO_TOWER))


async def active(settings: Settings) -> str | None:
    async with open_database(settings) as database:
        return await ReleaseRegistry(database).active()


def folders(settings: Settings) -> set[str]:
    return {path.name for path in settings.release_dir.iterdir() if path.is_dir()}


def models_of(settings: Settings, release: Manifest) -> list[Path]:
    entries = KeptRelease.model_validate(release.model_dump()).by_name
    return [
        settings.model_repository / model / str(entry.version) / MODEL_FILE
        for model, entry in entries.items()
    ]


async def test_of_two_publishers_at_once_one_is_refused_and_the_others_release_is_whole(
    settings: Settings, run: Run
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


async def test_what_another_publisher_is_writing_is_left_alone(settings: Settings, run: Run) -> None:
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
    settings: Settings, run: Run, tmp_path: Path, shared: str
) -> None:
    other = {"data_dir": tmp_path} if shared == "models" else {"model_repository": tmp_path}
    with (
        publishing_alone(settings.model_copy(update=other), "tuesday"),
        pytest.raises(SetupError, match="run tuesday"),
    ):
        await publish(run, settings)


async def test_a_release_whose_model_has_gone_is_not_registered(
    settings: Settings, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await active(settings)
    names = folders(settings)

    async def embed_and_lose(towers: object, version: int, catalogue: object) -> object:
        vectors = await embed(towers, version, catalogue)  # type: ignore[arg-type]
        shutil.rmtree(settings.model_repository / "video_tower" / str(version))
        return vectors

    monkeypatch.setattr(publishing, "embed", embed_and_lose)
    with pytest.raises(SetupError, match=r"video_tower.*model\.onnx has gone"):
        await publish(run, settings)
    assert await active(settings) == before
    assert {name for name in folders(settings) if not name.endswith(".tmp")} == names


async def test_folders_of_releases_that_are_not_kept_are_removed_and_their_rows_stay(
    settings: Settings, run: Run
) -> None:
    foreign = settings.release_dir / "copied by somebody"
    foreign.mkdir(exist_ok=True)
    published = [await publish(run, settings) for _ in range(RELEASES_KEPT + 2)]
    ids = [release.release_id for release in published]
    assert folders(settings) == {*ids[-RELEASES_KEPT:], foreign.name}

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


async def test_vectors_that_are_not_finite_are_refused_by_the_first_videos_name(
    settings: Settings, tmp_path: Path
) -> None:
    before = await active(settings)
    broken = exported(tmp_path / "broken", not_finite(video_tower(VIDEO_TOWER)))
    with pytest.raises(SetupError, match=r"60 videos, the first of them '\S+'"):
        await publish(broken, settings)
    assert await active(settings) == before


def test_a_repository_that_is_not_there_is_said(settings: Settings, tmp_path: Path) -> None:
    missing = settings.model_copy(update={"model_repository": tmp_path / "none"})
    with (
        pytest.raises(SetupError, match=r"cannot write to .*none: No such file"),
        publishing_alone(missing, "x"),
    ):
        pass
    assert not (tmp_path / "none" / LOCK_FILE).exists()
