"""The load-test configurations: they ask for what the contract has, of this machine, and end."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory

from keek.v1 import feed_service_pb2, interaction_service_pb2
from keek_server.rpc.rules import RuleChecker

KIT = Path(__file__).parents[2] / "clients" / "ghz"
CONFIGS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(KIT.glob("*.json"))}
PACKAGES = {feed_service_pb2.DESCRIPTOR.package, interaction_service_pb2.DESCRIPTOR.package}

every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def filled_in(data: dict[str, Any]) -> dict[str, Any]:
    """Call data after ghz's templates: `{{if}}` takes its first branch."""
    text = json.dumps(data)
    text = text.replace("{{newUUID}}", "8bdf3a1c-9e01-4d0a-8a53-5b0f4a6f8a10")
    text = re.sub(r"\{\{if [^}]*\}\}(\w+)\{\{else\}\}\w+\{\{end\}\}", r"\1", text)
    text = re.sub(r"\{\{randomInt (\d+) \d+\}\}", r"\1", text)
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
    assert {config for _, config in re.findall(r"^load (\w+) (\w+)", script, re.MULTILINE)} == set(CONFIGS)


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
