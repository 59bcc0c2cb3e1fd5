"""`keek experiments`, run as a program against a real gRPC server."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from client_experiments import REPORT, REPORT_HTML, REPORT_TEXT
from client_program import Done, run_keek
from client_server import Fault, Server, bad_request, error_info, serve

import keek
from keek.v1.experiment_service_pb2 import GetExperimentReportRequest

TOKEN = "a-token_of~the-tests"

EXAMPLE = str(Path(__file__).parents[2] / "clients/experiments/more-trending.yaml")
CHANGED = Path(EXAMPLE).read_text("utf-8").replace("weight: 1\n", "weight: 3\n", 1)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serve() as running:
        yield running


async def _run(server: Server, *arguments: str) -> Done:
    return await run_keek(server.target, "experiments", *arguments, variables={"KEEK_ADMIN_TOKEN": TOKEN})


def _store(server: Server, *names: str) -> None:
    for number, name in enumerate(names, 1):
        stored = server.experiments.stored[name] = keek.Experiment(
            definition=keek.ExperimentDefinition(experiment_id=name, traffic_percent=5.0)
        )
        stored.state = keek.ExperimentState.EXPERIMENT_STATE_RUNNING
        stored.create_time.FromSeconds(number)


async def test_an_experiment_is_shown_as_it_is_after_each_change(server: Server, tmp_path: Path) -> None:
    created = await _run(server, "create", EXAMPLE)
    assert (created.code, created.err) == (0, "")
    for line in (
        ["experiment", "more-trending"],
        ["state", "draft"],
        ["layer", "mix"],
        ["traffic", "20", "%"],
        ["audience", "everyone"],
        ["guardrails", "latency_ratio=1.5", "empty_share=0.02"],
        ["mix-70-30", "50", "%", "personalised_share=0.7"],
        ["mix-50-50", "50", "%", "personalised_share=0.5"],
        ["tester-2", "mix-50-50"],
    ):
        assert line in created.lines
    changed = tmp_path / "changed.yaml"
    changed.write_text(CHANGED)
    updated = await _run(server, "update", str(changed))
    assert ["mix-70-30", "75", "%", "personalised_share=0.7"] in updated.lines
    assert ["state", "running"] in (await _run(server, "start", "more-trending")).lines
    assert ["state", "stopped"] in (await _run(server, "stop", "more-trending")).lines
    told = ("--winner", "mix-50-50", "--because", "likes went up")
    concluded = await _run(server, "conclude", "more-trending", *told, "--json")
    assert (concluded.code, concluded.err) == (0, "")
    (shown,) = concluded.json
    assert (shown["state"], shown["winner"]) == ("EXPERIMENT_STATE_CONCLUDED", "mix-50-50")
    assert shown["conclusion"] == "likes went up"
    assert set(server.experiments.tokens.values()) == {f"Bearer {TOKEN}"}
    again = await _run(server, "get", "more-trending")
    assert ["conclusion", "likes", "went", "up"] in again.lines
    assert server.experiments.tokens["GetExperiment"] == ""


async def test_what_is_absent_is_not_shown_and_what_a_guardrail_stopped_is(server: Server) -> None:
    _store(server, "e1")
    experiment = server.experiments.stored["e1"]
    definition = keek.ExperimentDefinition(
        experiment_id="e1",
        traffic_percent=12.5,
        arms=[
            keek.Arm(name="control", weight=0.0),
            keek.Arm(name="x", parameters=keek.FeedParameters(per_owner_cap=2, release_id="r1")),
        ],
        audience=keek.Audience(user_id_prefixes=["u", "w"], regions=["KZ"]),
    )
    experiment.definition.CopyFrom(definition)
    experiment.stopped_arms.add(arm="x", reason="empty feeds")
    done = await run_keek(server.target, "experiments", "get", "e1")
    assert (done.code, done.err) == (0, "")
    assert done.lines == [
        ["experiment", "e1"],
        ["state", "running"],
        ["layer", "default"],
        ["traffic", "12.5", "%"],
        ["audience", "user", "ids", "u*", "w*,", "regions", "KZ"],
        ["created", "1970-01-01T00:00:01Z"],
        [],
        ["ARM", "SHARE", "STATUS", "PARAMETERS"],
        ["control", "(as", "it", "is)"],
        ["x", "stopped:", "empty", "feeds", "per_owner_cap=2", "release_id=r1"],
    ]


async def test_experiments_are_listed_the_latest_first_up_to_a_count(server: Server) -> None:
    _store(server, *(f"e{number:02}" for number in range(25)))
    for arguments in ([], ["list"]):
        done = await run_keek(server.target, "experiments", *arguments)
        assert (done.code, done.err) == (0, "")
        assert done.lines[0] == ["EXPERIMENT", "STATE", "LAYER", "TRAFFIC", "CREATED", "WINNER", "ARMS"]
        assert done.lines[1] == ["e24", "running", "default", "5", "%", "1970-01-01T00:00:25Z"]
        assert len(done.lines) == 21
    done = await run_keek(server.target, "experiments", "list", "--count", "23", "--json")
    names = [experiment["definition"]["experiment_id"] for experiment in done.json]
    assert names == [f"e{number:02}" for number in range(24, 1, -1)]
    sizes = [request.page_size for request in server.faults.requests["ListExperiments"]]  # type: ignore[attr-defined]
    assert sizes == [20, 20, 20, 20]


async def test_what_is_shown_as_json_can_be_given_back(server: Server, tmp_path: Path) -> None:
    (created,) = (await _run(server, "create", EXAMPLE, "--json")).json
    path = tmp_path / "definition.json"
    path.write_text(json.dumps(created["definition"]))
    before = server.faults.requests["CreateExperiment"][0].definition  # type: ignore[attr-defined]
    assert (await _run(server, "update", str(path))).code == 0
    assert server.faults.requests["UpdateExperiment"][0].definition == before  # type: ignore[attr-defined]


async def test_a_report_is_a_table_or_json(server: Server) -> None:
    _store(server, "e1")
    table = await _run(server, "report", "e1", "--window-hours", "1.5")
    assert table == Done(0, REPORT_TEXT, "")
    as_json = await _run(server, "report", "e1", "--json")
    assert (as_json.code, as_json.json, as_json.err) == (0, [REPORT], "")
    assert server.faults.requests["GetExperimentReport"] == [
        GetExperimentReportRequest(experiment_id="e1", window_hours=1.5),
        GetExperimentReportRequest(experiment_id="e1", window_hours=24.0),
    ]
    assert server.experiments.tokens["GetExperimentReport"] == f"Bearer {TOKEN}"


async def test_a_report_is_written_as_a_page_in_the_place_of_an_older_one(
    server: Server, tmp_path: Path
) -> None:
    _store(server, "e1")
    path = tmp_path / "e1.html"
    path.write_text("older")
    done = await _run(server, "report", "e1", "--html", str(path))
    assert done == Done(0, REPORT_TEXT, f"the page is in {path}\n")
    assert path.read_text("utf-8") == REPORT_HTML
    assert list(path.parent.iterdir()) == [path]


async def test_a_page_that_cannot_be_written_is_said_below_the_report(server: Server, tmp_path: Path) -> None:
    _store(server, "e1")
    done = await _run(server, "report", "e1", "--html", str(tmp_path))
    assert done == Done(1, REPORT_TEXT, f"keek: {tmp_path}: Is a directory\n")
    missing = await _run(server, "report", "e1", "--html", str(tmp_path / "none" / "e1.html"))
    assert (missing.code, missing.out) == (1, REPORT_TEXT)
    assert missing.err.endswith("No such file or directory\n")


async def test_a_page_for_a_device_does_not_take_its_place(server: Server) -> None:
    _store(server, "e1")
    done = await _run(server, "report", "e1", "--html", "/dev/stdout", "--json")
    assert done.code == 0
    assert done.out == json.dumps(REPORT) + "\n" + REPORT_HTML


async def test_a_file_that_defines_nothing_is_explained_and_not_sent(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("experiment_id: e1\ntraffic_percent: 5\narms: [{name: a, weight: '1'}]\n")
    for action in ("create", "update"):
        done = await _run(server, action, str(path))
        assert done == Done(1, "", f'keek: {path}: arms[0].weight: must be a number, not "1"\n')
    missing = await _run(server, "create", str(tmp_path / "none.yaml"))
    assert missing == Done(1, "", f"keek: {tmp_path / 'none.yaml'}: No such file or directory\n")
    assert not server.faults.attempts


async def test_what_the_server_refuses_is_one_line(server: Server) -> None:
    done = await _run(server, "start", "none")
    assert done == Done(1, "", "keek: NOT_FOUND: no experiment 'none'\n")
    refused = [error_info("INVALID_FIELDS"), bad_request(definition__layer="must be at most 64 bytes")]
    server.faults.add("CreateExperiment", Fault(grpc.StatusCode.INVALID_ARGUMENT, "bad", refused))
    done = await _run(server, "create", EXAMPLE)
    expected = "keek: INVALID_ARGUMENT: definition.layer: must be at most 64 bytes\n"
    assert done == Done(1, "", expected)
    server.faults.add("StopExperiment", Fault(grpc.StatusCode.PERMISSION_DENIED, "not without a token"))
    done = await run_keek(server.target, "experiments", "stop", "e1")
    assert server.experiments.tokens["StopExperiment"] == ""
    assert done.code == 1
    assert "--admin-token-file, KEEK_ADMIN_TOKEN or KEEK_ADMIN_TOKEN_FILE" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["get"],
        ["create"],
        ["conclude", "e1"],
        ["conclude", "e1", "--because", ""],
        ["report", "e1", "--window-hours", "0"],
        ["report", "e1", "--window-hours", "721"],
        ["report", "e1", "--window-hours", "nan"],
        ["list", "--count", "0"],
        ["pause", "e1"],
    ],
)
async def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = await run_keek("127.0.0.1:1", "experiments", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("usage: keek experiments")
