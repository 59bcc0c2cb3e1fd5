"""Experiments through both clients, on a real gRPC server."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from client_drivers import DRIVERS, Driver
from client_experiments import REPORT, REPORT_HTML, REPORT_TEXT
from client_server import Fault, Server, serve
from google.protobuf.json_format import Parse
from google.protobuf.struct_pb2 import Struct

import keek
from keek.v1.experiment_service_pb2 import GetExperimentReportRequest

TOKEN = "a-token_of~the-tests"

MORE_TRENDING = keek.ExperimentDefinition(
    experiment_id="more-trending",
    traffic_percent=12.5,
    arms=[
        keek.Arm(name="control", weight=1.0),
        keek.Arm(name="half", weight=1.0, parameters=keek.FeedParameters(personalised_share=0.5)),
    ],
    audience=keek.Audience(languages=["pt"]),
    overrides=[keek.ArmOverride(user_id="u1", arm="half")],
    adaptation=keek.Adaptation(metric="likes", floor=0.1),
    guardrails=keek.Guardrails(latency_ratio=1.5),
)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


@pytest.fixture(params=DRIVERS, ids=["blocking", "asyncio"])
async def client(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Driver]:
    driver = request.param(server.target, admin_token=TOKEN)
    yield driver
    await driver.close()


async def test_an_experiment_goes_from_draft_to_conclusion(client: Driver) -> None:
    states = keek.ExperimentState
    draft = await client.call("create_experiment", MORE_TRENDING)
    assert isinstance(draft, keek.Experiment)
    assert (draft.definition, draft.state) == (MORE_TRENDING, states.EXPERIMENT_STATE_DRAFT)
    assert not draft.HasField("start_time")
    changed = keek.ExperimentDefinition()
    changed.CopyFrom(MORE_TRENDING)
    changed.arms[0].weight = 3.0
    updated = await client.call("update_experiment", changed)
    assert updated.definition == changed
    running = await client.call("start_experiment", "more-trending")
    assert running.state == states.EXPERIMENT_STATE_RUNNING
    stopped = await client.call("stop_experiment", "more-trending")
    assert stopped.state == states.EXPERIMENT_STATE_STOPPED
    told = {"winner": "half", "conclusion": "likes went up"}
    concluded = await client.call("conclude_experiment", "more-trending", **told)
    assert concluded.state == states.EXPERIMENT_STATE_CONCLUDED
    assert (concluded.winner, concluded.conclusion) == ("half", "likes went up")
    assert await client.call("get_experiment", "more-trending") == concluded


async def test_nobody_need_win(client: Driver) -> None:
    await client.call("create_experiment", MORE_TRENDING)
    concluded = await client.call("conclude_experiment", "more-trending", conclusion="no difference")
    assert (concluded.winner, concluded.conclusion) == ("", "no difference")


async def test_all_experiments_come_page_after_page_the_latest_first(client: Driver, server: Server) -> None:
    for number in range(5):
        await client.call("create_experiment", keek.ExperimentDefinition(experiment_id=f"e{number}"))
    page = await client.call("list_experiments", page_size=2, page_token="1")
    assert [experiment.definition.experiment_id for experiment in page.experiments] == ["e3", "e2"]
    found = await client.collect("iter_experiments", page_size=2)
    assert [experiment.definition.experiment_id for experiment in found] == ["e4", "e3", "e2", "e1", "e0"]
    assert server.faults.attempts["ListExperiments"] == 4


@pytest.mark.parametrize("html", [False, True])
async def test_a_report_has_a_page_when_it_is_asked_for(client: Driver, server: Server, html: bool) -> None:
    await client.call("create_experiment", MORE_TRENDING)
    report = await client.call("get_experiment_report", "more-trending", window_hours=1.5, html=html)
    expected = Struct()
    expected.update(REPORT)
    assert Parse(report.report_json, Struct()) == expected
    assert report.report_text == REPORT_TEXT
    assert report.report_html == (REPORT_HTML if html else "")
    asked = GetExperimentReportRequest(experiment_id="more-trending", window_hours=1.5, html=html)
    assert server.faults.requests["GetExperimentReport"] == [asked]


CHANGES: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    ("CreateExperiment", "create_experiment", (MORE_TRENDING,), {}),
    ("UpdateExperiment", "update_experiment", (MORE_TRENDING,), {}),
    ("StartExperiment", "start_experiment", ("more-trending",), {}),
    ("StopExperiment", "stop_experiment", ("more-trending",), {}),
    ("ConcludeExperiment", "conclude_experiment", ("more-trending",), {"conclusion": "none"}),
]


@pytest.mark.parametrize(("method", "call", "arguments", "options"), CHANGES)
async def test_a_change_whose_answer_was_lost_is_asked_for_again(
    client: Driver,
    server: Server,
    method: str,
    call: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    if method != "CreateExperiment":
        await client.call("create_experiment", MORE_TRENDING)
    server.faults.lost_acknowledgements = 2
    changed = await client.call(call, *arguments, **options)
    assert server.faults.attempts[method] == 3
    assert changed == server.experiments.stored["more-trending"]
    assert len(server.experiments.stored) == 1


async def test_the_token_is_sent_with_the_calls_that_need_it_alone(client: Driver, server: Server) -> None:
    for _, call, arguments, options in CHANGES:
        await client.call(call, *arguments, **options)
    await client.call("get_experiment_report", "more-trending")
    await client.call("get_experiment", "more-trending")
    await client.collect("iter_experiments")
    shown = f"Bearer {TOKEN}"
    assert server.experiments.tokens == {
        "CreateExperiment": shown,
        "UpdateExperiment": shown,
        "StartExperiment": shown,
        "StopExperiment": shown,
        "ConcludeExperiment": shown,
        "GetExperimentReport": shown,
        "GetExperiment": "",
        "ListExperiments": "",
    }


@pytest.mark.parametrize(
    ("method", "call", "arguments", "options", "setting"),
    [
        *((*change, "change_experiment_s") for change in CHANGES),
        ("GetExperiment", "get_experiment", ("more-trending",), {}, "get_experiment_s"),
        ("ListExperiments", "list_experiments", (), {}, "list_experiments_s"),
        ("GetExperimentReport", "get_experiment_report", ("more-trending",), {}, "get_experiment_report_s"),
    ],
)
async def test_each_call_has_a_deadline_of_the_client_and_may_have_its_own(
    client: Driver,
    server: Server,
    method: str,
    call: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    setting: str,
) -> None:
    hasty = type(client)(server.target, timeouts=keek.Timeouts(**{setting: 0.2}))
    server.faults.add(method, Fault(delay_s=30.0), Fault(delay_s=30.0))
    with pytest.raises(keek.DeadlineExceededError):
        await hasty.call(call, *arguments, **options)
    with pytest.raises(keek.DeadlineExceededError):
        await client.call(call, *arguments, **options, timeout_s=0.2)
    await hasty.close()


async def test_what_the_server_refuses_is_an_error_of_its_kind(client: Driver) -> None:
    with pytest.raises(keek.NotFoundError, match="no experiment 'none'"):
        await client.call("get_experiment", "none")
    await client.call("create_experiment", MORE_TRENDING)
    other = keek.ExperimentDefinition(experiment_id="more-trending")
    with pytest.raises(keek.AlreadyExistsError):
        await client.call("create_experiment", other)
    await client.call("stop_experiment", "more-trending")
    with pytest.raises(keek.FailedPreconditionError):
        await client.call("start_experiment", "more-trending")
