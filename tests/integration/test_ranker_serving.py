"""The second stage on a real server and a real Triton: a release with a ranker, arms that switch it on and
off, and what comes while it fails."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from gate_towers import ranker, user_tower, video_tower, written
from patience import DEADLINES, TIMEOUTS
from pydantic import SecretStr
from tritonclient.grpc import aio as triton

import keek
import keek.aio
from keek.v1.feed_service_pb2 import ExplainFeedResponse, ListFeedResponse
from keek_server.app import App, open_app
from keek_server.embedded import EmbeddedStack
from keek_server.errors import UnavailableError
from keek_server.releases.manifest import Manifest
from keek_server.releases.registry import ReleaseRegistry
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.towers.client import TowerClient, open_towers
from keek_server.towers.contract import RANKER
from keek_server.towers.control import control_headers
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import import_dataset
from keek_training.gates.verdict import RefusedError
from keek_training.publishing.publish import Wishes, publish
from keek_training.publishing.source import TowerSource

pytestmark = pytest.mark.usefixtures("unhurried_triton")

INTERACTIONS = 600
VIDEOS = [f"v{number}" for number in range(200)]
DATA = f"synth:users=20,videos={len(VIDEOS)},interactions={INTERACTIONS},seed=1"
# Hardly two of the videos have one vector.
TABLE = np.random.default_rng(6).normal(size=(9973, 64)).astype(np.float32)
TOKEN = "a-token_of~the-tests"
USER = "u1"
PERSONALISED = keek.FeedSource.FEED_SOURCE_PERSONALISED


@dataclass
class Stage:
    """A release with a ranker that puts the worst first, and one without; the first one serves."""

    settings: Settings
    source: TowerSource
    ranked: Manifest
    plain: Manifest
    app: App
    client: keek.aio.Client

    async def triton(self, action: str) -> None:
        """Loads or unloads the ranker."""
        assert self.settings.triton_url is not None
        async with triton.InferenceServerClient(self.settings.triton_url) as control:
            act = control.load_model if action == "load" else control.unload_model
            await act(RANKER.model, headers=control_headers(self.settings.triton_control_token))

    async def activate(self, release_id: str) -> None:
        await self.client.activate_release(release_id, wait_s=30)

    async def explained(self, user_id: str) -> ExplainFeedResponse:
        """What is said of all videos there are, a hundred at a time."""
        whole = ExplainFeedResponse()
        for start in range(0, len(VIDEOS), 100):
            part = await self.client.explain_feed(user_id, VIDEOS[start : start + 100])
            whole.verdicts.extend(part.verdicts)
        whole.items.extend(part.items)
        whole.degradations.extend(part.degradations)
        return whole

    async def arm(self, user_id: str) -> str:
        return (await self.client.list_feed(user_id)).items[0].arm

    async def until_arm(self, user_id: str, arm: str) -> None:
        async with asyncio.timeout(20):
            while await self.arm(user_id) != arm:
                await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
async def stage(
    settings_in: Callable[[Path], Settings], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    folder = tmp_path_factory.mktemp("ranker")
    async with AsyncExitStack() as stack:
        settings = (await stack.enter_async_context(EmbeddedStack(settings_in(folder)))).settings
        async with open_database(settings) as database:
            await import_dataset(database, open_dataset(DATA))
        towers = written(folder, user_tower(), video_tower(TABLE, np.zeros((512, 64), np.float32)))
        model = folder / "ranker.onnx"
        model.write_bytes(ranker().SerializeToString())
        source = replace(towers, ranker=model)
        plain = await publish(towers, settings, Wishes(activate=False))
        ranked = await publish(source, settings)
        changes = {
            "listen": "127.0.0.1:0",
            "admin_token": SecretStr(TOKEN),
            "per_owner_cap": 100,
            **DEADLINES,
        }
        app = await stack.enter_async_context(open_app(settings.model_copy(update=changes)))
        client = keek.aio.Client(f"127.0.0.1:{app.port}", admin_token=TOKEN, timeouts=TIMEOUTS)
        await stack.enter_async_context(client)
        await asyncio.wait_for(app.live.wait(), 60)
        assert await app.projector.wait_for(INTERACTIONS, 60)
        yield Stage(settings, source, ranked, plain, app, client)


@pytest.fixture(autouse=True)
async def nothing_runs(stage: Stage) -> AsyncIterator[None]:
    yield
    async for experiment in stage.client.iter_experiments():
        await stage.client.stop_experiment(experiment.definition.experiment_id)
    await stage.until_arm(USER, "")


def two_arms(experiment_id: str, **overrides: str) -> keek.ExperimentDefinition:
    return keek.ExperimentDefinition(
        experiment_id=experiment_id,
        traffic_percent=100.0,
        arms=[
            keek.Arm(name="off", parameters=keek.FeedParameters(ranker=False)),
            keek.Arm(name="on", parameters=keek.FeedParameters(ranker=True)),
        ],
        overrides=[keek.ArmOverride(user_id=user_id, arm=arm) for user_id, arm in overrides.items()],
    )


def personal(feed: ListFeedResponse | ExplainFeedResponse) -> dict[str, float]:
    """The dot products of the personalised videos, in their order."""
    return {item.video_id: item.score for item in feed.items if item.source == PERSONALISED}


def order(explained: ExplainFeedResponse) -> dict[str, int]:
    """The places of all personalised candidates of a page, served or not."""
    places = {video_id: number for number, video_id in enumerate(personal(explained), 1)}
    for verdict in explained.verdicts:
        if found := re.search(r"number (\d+) of 30 from personalised", verdict.detail):
            places[verdict.video_id] = int(found[1])
    return places


async def test_two_arms_serve_the_same_candidates_in_different_orders(stage: Stage) -> None:
    await stage.client.create_experiment(two_arms("orders", **{USER: "off"}))
    await stage.client.start_experiment("orders")
    await stage.until_arm(USER, "orders/off")
    off = await stage.explained(USER)
    await stage.client.update_experiment(two_arms("orders", **{USER: "on"}))
    await stage.until_arm(USER, "orders/on")
    on = await stage.explained(USER)
    assert not off.degradations
    assert not on.degradations
    by_score, ranked = order(off), order(on)
    # But for one or two that trend as well, and are shown as such.
    assert by_score.keys() == ranked.keys()
    assert len(by_score) > 27
    scores = personal(off) | personal(on)
    assert list(personal(off).values()) == sorted(personal(off).values(), reverse=True)
    # The ranker turns them round, and leaves the scores what they are.
    assert list(personal(on).values()) == sorted(personal(on).values())
    assert max(personal(on).values()) < min(personal(off).values())
    assert len(scores) == 14
    for video_id in by_score.keys() - scores.keys():
        assert ranked[video_id] + by_score[video_id] == 31
    version = stage.ranked.ranker.version if stage.ranked.ranker else 0
    said = {verdict.video_id: verdict.detail for verdict in on.verdicts}
    for video_id in ranked:
        assert f"from personalised, ordered by ranker version {version}" in said[video_id]
    assert not any("ranker" in verdict.detail for verdict in off.verdicts)


async def test_users_are_in_both_arms_and_pages_follow_each_other(stage: Stage) -> None:
    await stage.client.create_experiment(two_arms("pages"))
    await stage.client.start_experiment("pages")
    async with asyncio.timeout(20):
        while not await stage.arm(USER):
            await asyncio.sleep(0.02)
    seen = set()
    for number in range(20):
        pages = [page async for page in stage.client.stream_feed(f"u{number}", page_count=2)]
        items = [item for page in pages for item in page.items]
        assert len({item.video_id for item in items}) == 20
        (arm,) = {item.arm for item in items}
        for page in pages:
            own = [item.score for item in page.items if item.source == PERSONALISED]
            assert own == sorted(own, reverse=arm == "pages/off")
        seen.add(arm)
    assert seen == {"pages/off", "pages/on"}


async def test_a_ranker_that_fails_costs_the_order_alone_and_the_feed_says_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.client.create_experiment(two_arms("fails", **{USER: "on", "u2": "off"}))
    await stage.client.start_experiment("fails")
    await stage.until_arm(USER, "fails/on")
    ranked = personal(await stage.client.list_feed(USER))

    async def refused(*_: object) -> None:
        raise UnavailableError("not this time")

    with monkeypatch.context() as patch:
        # Otherwise the server has it loaded again whenever it next looks at the plan.
        patch.setattr(TowerClient, "load", refused)
        await stage.triton("unload")
        try:
            feed = await stage.client.list_feed(USER)
            own = personal(feed)
            assert list(own.values()) == sorted(own.values(), reverse=True)
            assert len(own) == 7
            assert {item.arm for item in feed.items} == {"fails/on"}
            (degradation,) = feed.degradations
            assert degradation.source == PERSONALISED
            assert "in the order of their scores: Triton, ranker version" in degradation.reason
            assert not degradation.replaced_by
            # Its breaker is its own: who goes without it lacks nothing, and the towers are asked as ever.
            for _ in range(5):
                assert (await stage.client.list_feed(USER)).degradations
            other = await stage.client.list_feed("u2")
            assert not other.degradations
            assert len(personal(other)) == 7
        finally:
            await stage.triton("load")
    async with asyncio.timeout(30):
        while (feed := await stage.client.list_feed(USER)).degradations:
            await asyncio.sleep(0.05)
    assert personal(feed) == ranked


async def test_without_a_ranker_in_the_release_nobody_is_in_the_arm_that_wants_one(stage: Stage) -> None:
    await stage.client.create_experiment(two_arms("none", **{USER: "on", "u2": "off"}))
    await stage.client.start_experiment("none")
    await stage.until_arm(USER, "none/on")
    try:
        await stage.activate(stage.plain.release_id)
        feed = await stage.client.list_feed(USER)
        assert {(item.arm, item.release_id) for item in feed.items} == {("", stage.plain.release_id)}
        assert not feed.degradations
        assert await stage.arm("u2") == "none/off"
        await stage.client.stop_experiment("none")
        again = two_arms("again")
        await stage.client.create_experiment(again)
        with pytest.raises(keek.FailedPreconditionError, match="has no ranker to be switched on"):
            await stage.client.start_experiment("again")
        # One that it can have.
        again.arms[1].parameters.release_id = stage.ranked.release_id
        await stage.client.update_experiment(again)
        await stage.client.start_experiment("again")
    finally:
        await stage.activate(stage.ranked.release_id)


async def test_the_setting_switches_it_on_for_everyone_whose_release_has_one(stage: Stage) -> None:
    changes = {"listen": "127.0.0.1:0", "ranker": True, **DEADLINES}
    async with (
        open_app(stage.settings.model_copy(update=changes)) as app,
        keek.aio.Client(f"127.0.0.1:{app.port}", timeouts=TIMEOUTS) as client,
    ):
        await asyncio.wait_for(app.live.wait(), 60)
        own = list(personal(await client.list_feed(USER)).values())
        assert own == sorted(own)
        try:
            await stage.activate(stage.plain.release_id)
            feed = await client.list_feed(USER)
            own = list(personal(feed).values())
            assert own == sorted(own, reverse=True)
            assert not feed.degradations
        finally:
            await stage.activate(stage.ranked.release_id)


async def test_a_release_with_a_ranker_says_so_and_its_version_is_checked(stage: Stage) -> None:
    assert stage.ranked.ranker is not None
    assert stage.plain.ranker is None
    version = stage.ranked.ranker.version
    assert (await stage.client.get_release(stage.ranked.release_id)).release.ranker_version == version
    assert (await stage.client.get_release(stage.plain.release_id)).release.ranker_version == 0
    assert {gate.name for gate in stage.ranked.gates if gate.detail.startswith("ranker")} >= {
        "contract",
        "parity",
        "weights",
    }
    async with open_towers(stage.settings) as towers:
        await towers.check(RANKER, version)
        assert not await towers.has(RANKER, version + 1)


@pytest.mark.parametrize(
    ("model", "gate"),
    [(user_tower(), "contract"), (ranker((float("nan"),)), "weights"), (ranker((0.0,)), "spread")],
    ids=["another model", "NaN", "no order"],
)
async def test_a_ranker_that_is_none_is_refused_with_its_release(
    stage: Stage, tmp_path: Path, model: object, gate: str
) -> None:
    path = tmp_path / "ranker.onnx"
    path.write_bytes(model.SerializeToString())  # type: ignore[attr-defined]
    with pytest.raises(RefusedError, match=gate):
        await publish(replace(stage.source, ranker=path), stage.settings, Wishes(activate=False))
    async with open_database(stage.settings) as database:
        assert await ReleaseRegistry(database).active() == stage.ranked.release_id
