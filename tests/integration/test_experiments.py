"""Experiments on a real database and behind a real server: their life, and that all servers learn of it."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from manifests import bare_manifest
from pydantic import SecretStr

from keek.v1 import experiment_service_pb2 as pb
from keek.v1 import experiment_service_pb2_grpc
from keek_server.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from keek_server.experiments.definitions import ExperimentDefinition, ExperimentState
from keek_server.experiments.live import POLL_S, LiveExperiments
from keek_server.experiments.registry import Experiment, ExperimentRegistry
from keek_server.experiments.reports import ExperimentReports
from keek_server.feed.types import FeedQuery
from keek_server.metrics_endpoint import WORKERS_FOLDER
from keek_server.releases.plan import ReleaseState
from keek_server.releases.registry import ReleaseRegistry
from keek_server.rpc.admin import Authority
from keek_server.rpc.experiments import ExperimentServicer
from keek_server.rpc.guard import GuardInterceptor
from keek_server.rpc.rules import RuleChecker
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.videos.slots import Slots

TOKEN = "a-token_of~the-tests"


def definition(experiment_id: str = "mix", **changes: Any) -> ExperimentDefinition:
    arms = [{"name": "control"}, {"name": "half", "parameters": {"personalised_share": 0.5}}]
    return ExperimentDefinition.of(
        {"experiment_id": experiment_id, "traffic_percent": 50.0, "arms": arms} | changes
    )


@pytest.fixture
def registry(database: Database) -> ExperimentRegistry:
    return ExperimentRegistry(database)


class Pinned:
    """Remembers what was to be opened."""

    def __init__(self) -> None:
        self.release_ids: Collection[str] = ()

    def pin(self, release_ids: Collection[str]) -> None:
        self.release_ids = release_ids


# -- the registry ------------------------------------------------------------------------------------
async def test_a_life_of_an_experiment(registry: ExperimentRegistry) -> None:
    draft = await registry.create(definition())
    assert (draft.state, draft.start_time_us, draft.buckets) == (ExperimentState.DRAFT, None, ())
    assert await registry.create(definition()) == draft
    with pytest.raises(AlreadyExistsError):
        await registry.create(definition(traffic_percent=10.0))
    assert (await registry.update(definition(traffic_percent=10.0))).definition.traffic_percent == 10.0
    running = await registry.start("mix")
    assert (running.state, running.buckets) == (ExperimentState.RUNNING, ((0, 100),))
    assert await registry.start("mix") == running
    assert await registry.running() == [running]
    stopped = await registry.stop("mix")
    assert await registry.stop("mix") == stopped
    assert await registry.running() == []
    with pytest.raises(FailedPreconditionError, match="cannot be started again"):
        await registry.start("mix")
    with pytest.raises(FailedPreconditionError, match="nothing of it can change"):
        await registry.update(definition())
    with pytest.raises(InvalidArgumentError):
        await registry.conclude("mix", "nobody", "half is better")
    concluded = await registry.conclude("mix", "half", "half is better")
    assert (concluded.state, concluded.winner) == (ExperimentState.CONCLUDED, "half")
    assert concluded.stop_time_us == stopped.stop_time_us
    assert await registry.conclude("mix", "half", "half is better") == concluded
    with pytest.raises(FailedPreconditionError, match="is concluded"):
        await registry.conclude("mix", "", "it is not")


async def test_what_is_not_there_is_not_found(registry: ExperimentRegistry) -> None:
    for call in (registry.get, registry.start, registry.stop):
        with pytest.raises(NotFoundError, match="no experiment z"):
            await call("z")


async def test_while_it_runs_little_can_change(registry: ExperimentRegistry) -> None:
    await registry.create(definition())
    await registry.start("mix")
    heavier = definition().with_weights({"half": 3.0})
    changed = await registry.update(heavier.model_copy(update={"overrides": {"u1": "half"}}))
    assert changed.definition.arms[1].weight == 3.0
    assert changed.weights_time_us is not None
    for other in (
        definition(traffic_percent=60.0),
        definition(layer="x"),
        definition(arms=[{"name": n} for n in "ab"]),
    ):
        with pytest.raises(FailedPreconditionError, match="only weights"):
            await registry.update(other)


async def test_a_layer_is_given_out_once_and_what_ended_is_free_again(registry: ExperimentRegistry) -> None:
    for name in "abc":
        await registry.create(definition(name))
    await asyncio.gather(registry.start("a"), registry.start("b"))
    assert sorted(each.buckets for each in await registry.running()) == [((0, 500),), ((500, 1000),)]
    with pytest.raises(FailedPreconditionError, match=r"layer default has 0.0% of the users left, not 50 %"):
        await registry.start("c")
    await registry.stop("a")
    assert (await registry.start("c")).buckets in (((0, 500),), ((500, 1000),))


async def test_two_layers_do_not_set_the_same(registry: ExperimentRegistry) -> None:
    slots = [{"name": "control"}, {"name": "four", "parameters": {"trending_slots": 4}}]
    await registry.create(definition("a"))
    await registry.create(definition("b", layer="other", arms=slots))
    await registry.start("a")
    with pytest.raises(
        FailedPreconditionError, match="experiment a sets personalised_share in another layer"
    ):
        await registry.start("b")


async def test_a_pinned_release_must_be_able_to_serve_and_is_kept(
    registry: ExperimentRegistry, database: Database
) -> None:
    releases = ReleaseRegistry(database)
    for number, name in enumerate(("old", "new")):
        await releases.register(bare_manifest(name, number), ReleaseState.READY)
    await releases.activate("new", "")
    pinning = [{"name": "control"}, {"name": "old", "parameters": {"release_id": "old"}}]
    await registry.create(definition("a", arms=pinning))
    await registry.create(
        definition("b", arms=[{"name": "x"}, {"name": "y", "parameters": {"release_id": "z"}}])
    )
    with pytest.raises(FailedPreconditionError, match="release z cannot serve"):
        await registry.start("b")
    await registry.start("a")
    assert {each.release_id for each in await releases.retire(0, ())} == {"new", "old"}
    await registry.stop("a")
    assert {each.release_id for each in await releases.retire(0, ())} == {"new"}


async def test_arms_with_a_ranker_start_where_the_release_has_one_and_in_one_layer_alone(
    registry: ExperimentRegistry, database: Database
) -> None:
    def ranked(experiment_id: str, *, layer: str, is_on: bool, release_id: str = "") -> ExperimentDefinition:
        own = {"ranker": is_on, "release_id": release_id}
        arms = [{"name": "control"}, {"name": "other", "parameters": own}]
        return definition(experiment_id, layer=layer, arms=arms)

    releases, plain = ReleaseRegistry(database), bare_manifest("plain", 1)
    await releases.register(plain, ReleaseState.READY)
    given = bare_manifest("ranked", 2).model_copy(update={"ranker": plain.user_tower})
    await releases.register(given, ReleaseState.READY)
    await registry.create(ranked("on", layer="x", is_on=True))
    with pytest.raises(FailedPreconditionError, match="release none has no ranker"):
        await registry.start("on")
    await releases.activate("plain", "")
    with pytest.raises(FailedPreconditionError, match="release plain has no ranker"):
        await registry.start("on")
    await registry.update(ranked("on", layer="x", is_on=True, release_id="ranked"))
    await registry.start("on")
    await registry.stop("on")
    await releases.activate("ranked", "")
    await registry.create(ranked("again", layer="x", is_on=True))
    await registry.start("again")
    await registry.create(ranked("off", layer="y", is_on=False))
    with pytest.raises(FailedPreconditionError, match="experiment again sets ranker in another layer"):
        await registry.start("off")


async def test_an_arm_is_stopped_once_and_a_review_is_one_servers(registry: ExperimentRegistry) -> None:
    await registry.create(definition())
    assert not await registry.claim_review("mix", 1)
    await registry.start("mix")
    assert [await registry.claim_review("mix", 1) for _ in range(2)] == [True, False]
    await registry.stop_arm("mix", "half", "feeds are slow")
    stopped = await registry.stop_arm("mix", "half", "feeds are empty")
    (arm,) = stopped.stopped_arms
    assert (arm.name, arm.reason) == ("half", "feeds are slow")
    assert stopped.running.stopped_arms == {"half"}
    adapted = await registry.adapt("mix", {"control": 0.3, "half": 0.7})
    assert [each.weight for each in adapted.definition.arms] == [0.3, 0.7]


async def test_experiments_are_paged_latest_first(registry: ExperimentRegistry) -> None:
    for name in "abcd":
        await registry.create(definition(name))
    first = await registry.list(3)
    rest = await registry.list(3, (first[-1].create_time_us, first[-1].id))
    assert [each.id for each in [*first, *rest]] == list("dcba")


# -- servers -----------------------------------------------------------------------------------------
async def test_a_change_reaches_every_server_within_a_second(
    registry: ExperimentRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the second time that it asks, which is every half a second."""
    assert POLL_S <= 0.5
    reads, running = 0, registry.running

    async def counted() -> list[Experiment]:
        nonlocal reads
        reads += 1
        return await running()

    monkeypatch.setattr(registry, "running", counted)
    pinned = Pinned()
    live = LiveExperiments(registry, pinned, holdout=0.0)
    following = asyncio.create_task(live.follow())
    query = FeedQuery("u1", 10, 1.0)
    try:
        await registry.create(definition(traffic_percent=100.0))
        await asyncio.sleep(0.1)
        assert not live.assign(query).arms
        for change, is_in in ((registry.start, True), (registry.stop, False)):
            await change("mix")
            before = reads
            async with asyncio.timeout(10):
                while bool(live.assign(query).arms) != is_in:
                    await asyncio.sleep(0.01)
            # A busy machine may be longer about it, and ask no more often.
            assert reads - before <= 2
    finally:
        following.cancel()
        await asyncio.wait([following])


@asynccontextmanager
async def serving(database: Database, url: str) -> AsyncIterator[Any]:
    guard = GuardInterceptor(RuleChecker(), Authority(SecretStr(TOKEN)))
    server = grpc.aio.server(interceptors=(guard,))

    async def announce() -> None:
        """Nobody listens."""

    servicer = ExperimentServicer(
        ExperimentRegistry(database), announce, ExperimentReports(url, Slots(1, "reports"))
    )
    experiment_service_pb2_grpc.add_ExperimentServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield experiment_service_pb2_grpc.ExperimentServiceStub(channel)
    finally:
        await server.stop(None)


ADMIN = (("authorization", f"Bearer {TOKEN}"),)


def message(**changes: Any) -> pb.ExperimentDefinition:
    given: dict[str, Any] = {
        "experiment_id": "mix",
        "traffic_percent": 50.0,
        "arms": [
            pb.Arm(name="control", weight=1.0),
            pb.Arm(
                name="half", weight=2.0, parameters=pb.FeedParameters(personalised_share=0.0, per_owner_cap=3)
            ),
        ],
        "overrides": [pb.ArmOverride(user_id="u1", arm="half")],
        "guardrails": pb.Guardrails(latency_ratio=2.0),
        "adaptation": pb.Adaptation(metric="likes", floor=0.1),
    }
    return pb.ExperimentDefinition(**given | changes)


async def test_what_was_created_is_told_as_it_was_given(database: Database) -> None:
    async with serving(database, "") as stub:
        made = (
            await stub.CreateExperiment(pb.CreateExperimentRequest(definition=message()), metadata=ADMIN)
        ).experiment
        assert made.state == pb.EXPERIMENT_STATE_DRAFT
        own = message()
        own.layer = "default"
        told = made.definition
        assert told.arms[1].parameters.HasField("personalised_share")
        assert not told.arms[0].parameters.HasField("per_owner_cap")
        for definition_ in (own, told):
            definition_.ClearField("audience")
            for arm in definition_.arms:
                if not arm.parameters.ListFields():
                    arm.ClearField("parameters")
        assert told == own
        for call, request in (
            (stub.StartExperiment, pb.StartExperimentRequest(experiment_id="mix")),
            (stub.StopExperiment, pb.StopExperimentRequest(experiment_id="mix")),
            (
                stub.ConcludeExperiment,
                pb.ConcludeExperimentRequest(experiment_id="mix", conclusion="nothing"),
            ),
        ):
            await call(request, metadata=ADMIN)
        found = (await stub.GetExperiment(pb.GetExperimentRequest(experiment_id="mix"))).experiment
        assert (found.state, found.conclusion) == (pb.EXPERIMENT_STATE_CONCLUDED, "nothing")
        assert found.create_time.seconds <= found.start_time.seconds <= found.stop_time.seconds
        page = await stub.ListExperiments(pb.ListExperimentsRequest())
        assert [each.definition.experiment_id for each in page.experiments] == ["mix"]


@pytest.mark.parametrize(
    ("call", "request_", "code", "because"),
    [
        ("CreateExperiment", pb.CreateExperimentRequest(), "INVALID_ARGUMENT", "definition"),
        (
            "CreateExperiment",
            pb.CreateExperimentRequest(definition=message(arms=[pb.Arm(name="a", weight=1.0)])),
            "INVALID_ARGUMENT",
            "definition.arms",
        ),
        (
            "CreateExperiment",
            pb.CreateExperimentRequest(
                definition=message(overrides=[pb.ArmOverride(user_id="u1", arm="half")] * 2)
            ),
            "INVALID_ARGUMENT",
            "name a user twice",
        ),
        ("StartExperiment", pb.StartExperimentRequest(experiment_id="z"), "NOT_FOUND", "no experiment z"),
        (
            "UpdateExperiment",
            pb.UpdateExperimentRequest(definition=message()),
            "NOT_FOUND",
            "no experiment mix",
        ),
        (
            "GetExperimentReport",
            pb.GetExperimentReportRequest(experiment_id="z"),
            "NOT_FOUND",
            "no experiment z",
        ),
    ],
)
async def test_what_cannot_be_is_refused_with_the_reason(
    database: Database, settings: Settings, call: str, request_: Any, code: str, because: str
) -> None:
    async with serving(database, settings.database_url) as stub:
        with pytest.raises(grpc.aio.AioRpcError, match=because) as refused:
            await getattr(stub, call)(request_, metadata=ADMIN)
        assert refused.value.code().name == code


async def test_a_report_leaves_nothing_among_the_metrics_of_the_workers(
    database: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert database
    folder = tmp_path / "metrics"
    folder.mkdir()
    monkeypatch.setenv(WORKERS_FOLDER, str(folder))
    with pytest.raises(NotFoundError):
        await ExperimentReports(settings.database_url, Slots(1, "reports")).make("nope", window_hours=1.0)
    assert not list(folder.iterdir())


async def test_changes_and_reports_need_the_token(database: Database) -> None:
    async with serving(database, "") as stub:
        for call, request in (
            (stub.CreateExperiment, pb.CreateExperimentRequest(definition=message())),
            (stub.StopExperiment, pb.StopExperimentRequest(experiment_id="mix")),
            (stub.GetExperimentReport, pb.GetExperimentReportRequest(experiment_id="mix")),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(request)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
