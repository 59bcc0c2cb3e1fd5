"""Releases that the gates or Triton refuse: a report, and nothing else of them."""

import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from gate_towers import user_tower, video_tower
from onnx import ModelProto, helper, numpy_helper, save
from published import active, exported, folders, stack_with_videos, versions

from keek_server.embedded import EmbeddedStack
from keek_server.errors import FailedPreconditionError, SetupError
from keek_server.releases.manifest import Candidate, Manifest
from keek_server.releases.plan import ReleaseState
from keek_server.releases.registry import ReleaseRegistry
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.towers.client import open_towers
from keek_server.towers.contract import DIMENSION, TOWERS, USER_TOWER
from keek_training.gates.verdict import RefusedError
from keek_training.publishing import examination
from keek_training.publishing.publish import Wishes, publish
from keek_training.publishing.source import TowerSource

pytestmark = pytest.mark.usefixtures("unhurried_triton")


@pytest.fixture(scope="module")
async def stack(
    settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EmbeddedStack]:
    """Of this file's own: publishing removes what no release of its own database uses."""
    async with stack_with_videos(settings_in(tmp_path_factory.mktemp("refused"))) as stack:
        yield stack


@pytest.fixture
def settings(stack: EmbeddedStack) -> Settings:
    return stack.settings


@pytest.fixture
def run(tmp_path: Path) -> TowerSource:
    return exported(tmp_path / "monday", video_tower())


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


async def test_vectors_that_are_not_finite_are_refused_before_triton_sees_them(
    settings: Settings, tmp_path: Path
) -> None:
    before = await active(settings)
    broken = exported(tmp_path / "broken", not_finite(video_tower()))
    with pytest.raises(SetupError, match=r"refused by gate max_norm: .*not finite"):
        await publish(broken, settings)
    assert await active(settings) == before


def rotated() -> np.ndarray:
    """A rotation that the video tower does not have: every score is garbage."""
    return np.linalg.qr(np.random.default_rng(3).normal(size=(DIMENSION, DIMENSION)))[0].astype(np.float32)


async def test_a_release_that_a_gate_refuses_leaves_a_report_and_nothing_else(
    settings: Settings, run: TowerSource
) -> None:
    live = (await publish(run, settings)).release_id
    strict = settings.model_copy(update={"gate_overlap": 1.0, "gate_recall": 1.0})
    other = dataclasses.replace(run, user_tower=run.user_tower.with_name("rotated.onnx"), name="rotated")
    save(user_tower(rotated()), other.user_tower)
    names, before = folders(settings), versions(settings)
    with pytest.raises(
        RefusedError, match=r"^refused by gate overlap: value 0\.\d+, at least 1 is asked for"
    ):
        await publish(other, strict)
    assert await active(settings) == live
    assert (folders(settings), versions(settings)) == (names, before)
    async with open_database(settings) as database, open_towers(settings) as towers:
        registry = ReleaseRegistry(database)
        newest = (await registry.list(1))[0]
        assert newest.state is ReleaseState.REFUSED
        manifest = Manifest.model_validate(newest.manifest)
        assert [gate.name for gate in manifest.gates if not gate.passed] == ["overlap"]
        assert manifest.source == "rotated"
        with pytest.raises(FailedPreconditionError, match="was refused"):
            await registry.activate(newest.release_id, "")
        assert not await towers.has(USER_TOWER, manifest.user_tower.version)
        assert await towers.has(USER_TOWER, max(map(int, before)))
    report = settings.data_dir / "reports" / newest.release_id
    assert "overlap" in (report / "report.txt").read_text("utf-8")
    assert "<svg" in (html := (report / "report.html").read_text("utf-8")) or "data:image/png" in html

    forced = await publish(other, strict, Wishes(forced_reason="a rotation is what we want"))
    assert forced.forced_reason == "a rotation is what we want"
    # A number is never used again, also not that of a refused model.
    assert forced.user_tower.version == manifest.user_tower.version + 1
    async with open_database(settings) as database:
        plan = await ReleaseRegistry(database).plan()
    assert plan is not None
    assert plan.release_id == forced.release_id
    assert plan.reason.endswith("forced: a rotation is what we want")


async def test_a_model_that_breaks_the_contract_never_reaches_the_repository_and_cannot_be_forced(
    settings: Settings, run: TowerSource
) -> None:
    before = versions(settings)
    swapped = dataclasses.replace(run, user_tower=run.video_tower, video_tower=run.user_tower)
    with pytest.raises(RefusedError, match=r"refused by gate contract: .*expected") as refused:
        await publish(swapped, settings, Wishes(forced_reason="never mind"))
    assert "\n" not in str(refused.value)
    assert versions(settings) == before
    async with open_database(settings) as database:
        newest = (await ReleaseRegistry(database).list(1))[0]
    assert newest.state is ReleaseState.REFUSED
    candidate = Candidate.model_validate(newest.manifest)
    assert candidate.gates == refused.value.results
    assert candidate.user_tower.size_bytes == run.video_tower.stat().st_size
    # It never had its number, and nobody else gets it.
    assert (await publish(run, settings)).user_tower.version > candidate.user_tower.version


async def test_a_model_that_triton_cannot_load_is_taken_out_again_and_the_live_ones_answer(
    settings: Settings, run: TowerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = await publish(run, settings)
    before = versions(settings)
    broken = dataclasses.replace(run, video_tower=run.video_tower.with_name("broken.onnx"))
    broken.video_tower.write_bytes(b"no model at all")
    # As a model that passes the gates and still does not load.
    with monkeypatch.context() as patch:
        patch.setattr(examination, "preflight", lambda *_: [])
        with pytest.raises(SetupError, match="Triton does not load video_tower"):
            await publish(broken, settings)
    assert versions(settings) == before
    assert await active(settings) == live.release_id
    async with open_towers(settings) as towers:
        for tower in TOWERS:
            assert await towers.has(tower, live.user_tower.version)
            assert not await towers.has(tower, live.user_tower.version + 1)
    with pytest.raises(RefusedError, match="gate format"):
        await publish(broken, settings)
