"""The load-test configurations: they ask for what the contract has, of this machine, and end."""

import asyncio
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from patience import eventually
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

import keek
from keek.v1 import feed_service_pb2, interaction_service_pb2, search_service_pb2
from keek_server.embedded.procfs import process_status
from keek_server.rpc.rules import RuleChecker

KIT = Path(__file__).parents[2] / "clients" / "ghz"
RECORDED = Path(__file__).parents[1] / "data" / "ghz_list_feed_at_rate.json"
CONFIGS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(KIT.glob("*.json"))}
SERVICES = (feed_service_pb2, interaction_service_pb2, search_service_pb2)
PACKAGES = {service.DESCRIPTOR.package for service in SERVICES}

RUN_OPTIONS = {"total": 4, "call": "ListFeed", "concurrency": 1, "connections": 1}

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def filled_in(data: dict[str, Any]) -> dict[str, Any]:
    """Call data after ghz's templates: `{{if}}` takes its first branch."""
    text = json.dumps(data)
    text = text.replace("{{newUUID}}", "8bdf3a1c-9e01-4d0a-8a53-5b0f4a6f8a10")
    text = re.sub(r"\{\{if [^}]*\}\}(\w+)\{\{else\}\}\w+\{\{end\}\}", r"\1", text)
    # A number up to one that is drawn, or one of some texts.
    text = re.sub(r"\{\{randomInt (\d+) \(index \(list [\d ]+\) \(randomInt \d+ \d+\)\)\}\}", r"\1", text)
    text = re.sub(r"\{\{index \(list `([^`]+)`[^)]*\) \(randomInt \d+ \d+\)\}\}", r"\1", text)
    assert "{{" not in text
    filled: dict[str, Any] = json.loads(text)
    return filled


@every_config
def test_a_config_makes_a_call_that_the_server_accepts(config: dict[str, Any]) -> None:
    method = descriptor_pool.Default().FindMethodByName(config["call"].replace("/", "."))
    assert method.containing_service.file.package in PACKAGES
    request = message_factory.GetMessageClass(method.input_type)()
    json_format.ParseDict(filled_in(config["data"]), request)
    RuleChecker().check(request)


def test_prepared_interactions_are_accepted_and_views_say_how_long_they_took() -> None:
    spec = importlib.util.spec_from_file_location("ghz_prepare", KIT / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    draw, videos = random.Random(1), [keek.Video(video_id="v1", duration_s=4.0), keek.Video(video_id="v2")]
    longest = {"v1": 4.0, "v2": 30.0}
    views = 0
    for number in range(500):
        data = filled_in(prepare._interaction(videos[number % 2], draw))
        request = interaction_service_pb2.RecordInteractionRequest()
        json_format.ParseDict(data, request)
        RuleChecker().check(request)
        own = request.interaction
        is_view = own.kind == keek.InteractionKind.INTERACTION_KIND_VIEW
        views += is_view
        assert own.HasField("watched") is is_view
        assert own.watched.ToTimedelta().total_seconds() <= longest[own.video_id]
    assert 430 < views < 470


@every_config
def test_a_config_loads_this_machine_alone_and_ends(config: dict[str, Any]) -> None:
    assert config["host"] == "127.0.0.1:50051"
    assert config["insecure"]
    assert 0 < config["total"] <= 10_000
    assert config["count-errors"]
    assert config["timeout"]
    assert config["connections"] <= config["concurrency"]


def test_the_script_runs_every_config() -> None:
    script = (KIT / "run.sh").read_text("utf-8")
    assert {config for _, config in re.findall(r"\bload ([a-z_]+) ([a-z_]+)", script)} == set(CONFIGS)


@pytest.mark.parametrize("sleeps", ["record_interaction", "day_*"])
async def test_ctrl_c_ends_the_load(tmp_path: Path, sleeps: str) -> None:
    """Where a server runs already; a ghz of which some runs do not end takes the place of the real one."""
    kit, python, ghz = tmp_path / "clients" / "ghz", tmp_path / ".venv" / "bin" / "python", tmp_path / "ghz"
    began = tmp_path / "began"
    for path, text in (
        (kit / "run.sh", (KIT / "run.sh").read_text("utf-8")),
        (kit / "install.sh", f"#!/bin/bash\necho {ghz}\n"),
        (python, "#!/bin/bash\n"),
        (ghz, f"#!/bin/bash\n[[ $4 != {sleeps} ]] || {{ echo $$ >> {began}; exec sleep 1000; }}\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        path.chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        kit / "run.sh", stdout=asyncio.subprocess.DEVNULL, process_group=0
    )
    count = 1 if sleeps == "record_interaction" else 3
    try:
        await eventually(lambda: began.exists() and len(began.read_text("utf-8").split()) == count)
        os.killpg(process.pid, signal.SIGINT)
        async with asyncio.timeout(60):
            assert await process.wait() == 130
        runs = list(map(int, began.read_text("utf-8").split()))
        await eventually(lambda: not any(map(runs_on, runs)))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def runs_on(pid: int) -> bool:
    status = process_status(pid)
    return status is not None and status.state != "Z"


def test_a_mixed_day_does_not_wait_for_answers_and_its_parts_end_together() -> None:
    parts = {name: config for name, config in CONFIGS.items() if name.startswith("day_")}
    assert {config["call"].rpartition("/")[2] for config in parts.values()} == {
        "ListFeed",
        "StreamFeed",
        "RecordInteraction",
        "SearchVideos",
    }
    assert all(config["async"] and config["connections"] > 1 for config in parts.values())
    assert len({config["total"] / config["rps"] for config in parts.values()}) == 1


@every_config
def test_a_list_that_a_config_draws_from_is_drawn_from_whole(config: dict[str, Any]) -> None:
    drawn = re.findall(r"\(list ([^)]+)\) \(randomInt 0 (\d+)\)", json.dumps(config["data"]))
    assert drawn
    for listed, count in drawn:
        assert len(re.findall(r"`[^`]+`|\d+", listed)) == int(count)


def report(**changes: Any) -> dict[str, Any]:
    """A report as ghz 0.121 writes it, as far as the summary reads it."""
    latencies = [{"percentage": 50, "latency": 2_000_000}, {"percentage": 99, "latency": 7_500_000}]
    return {
        "name": "list_feed",
        "options": {"total": 10},
        "count": 10,
        "rps": 123.4,
        "slowest": 9_000_000,
        "statusCodeDistribution": {"OK": 10},
        "errorDistribution": {},
        "latencyDistribution": latencies,
    } | changes


@pytest.mark.parametrize(
    ("written", "code", "said"),
    [
        (report(), 0, "every call succeeded"),
        (report(statusCodeDistribution={"OK": 9, "Unavailable": 1}), 1, "list_feed: Unavailable: 1"),
        (report(count=7, statusCodeDistribution={"OK": 7}), 1, "list_feed: 7 of 10 calls made"),
    ],
)
def test_the_summary_fails_when_any_call_failed_or_is_missing(
    tmp_path: Path, written: dict[str, Any], code: int, said: str
) -> None:
    (tmp_path / "list_feed.json").write_text(json.dumps(written), "utf-8")
    command = [sys.executable, str(KIT / "summary.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stdout
    assert "2.00" in done.stdout, "the median in milliseconds"


def tell(folder: Path, name: str, feeds: int, failures: int) -> None:
    """Writes what a server that made so many feeds tells Prometheus."""
    registry = CollectorRegistry()
    seconds = Histogram(
        "keek_rpc_seconds", "Calls.", ("method", "code"), registry=registry, buckets=(0.01, 0.1)
    )
    for _ in range(feeds):
        seconds.labels("ListFeed", "OK").observe(0.05)
    Counter("keek_feed_failures", "Failed open.", ("stage",), registry=registry).labels("trending").inc(
        failures
    )
    Counter("other", "Not of Keek.", registry=registry).inc(failures)
    (folder / name).write_bytes(generate_latest(registry))


def write_report(folder: Path) -> str:
    command = [sys.executable, str(KIT / "report.py"), str(folder)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    return (folder / "report.html").read_text("utf-8")


def test_the_page_shows_a_recorded_run_its_errors_and_what_the_server_counted_meanwhile(
    tmp_path: Path,
) -> None:
    shutil.copy(RECORDED, tmp_path)
    recorded = json.loads(RECORDED.read_text("utf-8"))
    tell(tmp_path, "metrics_before.txt", feeds=5, failures=2)
    tell(tmp_path, "metrics_after.txt", feeds=65, failures=9)
    page = write_report(tmp_path)
    times = sorted(each["latency"] for each in recorded["details"])
    assert "DeadlineExceeded: 10" in page
    row = re.search(r"<td>list_feed_at_rate</td>(.*?)</tr>", page)
    assert row is not None
    cells = re.findall(r"<td>(.*?)</td>", row[1])
    assert cells[:2] == ["60", "50"]
    assert cells[3] == f"{times[30] / 1e6:.2f}", "the median of all, failed ones among them"
    assert cells[-1] == f"{times[-1] / 1e6:.2f}"
    bars = re.findall(r"ms: (\d+) (answered|failed)</title>", page)
    for group, count in (("answered", 50), ("failed", 10)):
        assert sum(int(number) for number, own in bars if own == group) == count
    assert "7 stages of feeds failed open" in page
    assert re.search(r"ListFeed.*?</td><td>60</td><td>50.00</td><td>100</td>", page)
    assert re.search(r"keek_feed_failures_total.*?</td><td>7</td>", page)
    assert "other_total" not in page
    assert "http" not in page.replace("http://www.w3.org", ""), "it loads nothing"


def test_the_page_says_when_the_server_told_nothing(tmp_path: Path) -> None:
    shutil.copy(RECORDED, tmp_path)
    assert "started without KEEK_METRICS_LISTEN" in write_report(tmp_path)


def test_percentiles_over_time_go_by_when_calls_began(tmp_path: Path) -> None:
    """A server that stands still answers all at once: by their ends, nothing would have waited."""
    details = [
        {"timestamp": f"2026-01-01T00:00:0{2 + i}.5Z", "latency": (2 if i < 2 else 0.5) * 1e9, "status": "OK"}
        for i in range(4)
    ]
    written = report(details=details, count=4, date="", options=RUN_OPTIONS)
    (tmp_path / "run.json").write_text(json.dumps(written), "utf-8")
    page = write_report(tmp_path)
    line = re.search(r'<polyline points="([^"]+)"', page)
    assert line is not None
    heights = [float(point.partition(",")[2]) for point in line[1].split()]
    assert heights[0] == heights[1] < heights[-1], "two slow ones first; up is less in SVG"


def test_without_reports_there_is_no_page(tmp_path: Path) -> None:
    command = [sys.executable, str(KIT / "report.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no report" in done.stderr
