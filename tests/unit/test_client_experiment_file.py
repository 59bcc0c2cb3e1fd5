"""Definitions of experiments as files: what they become, and what is refused with its place."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

import keek
from keek.cli.documents import BadDocumentError
from keek.cli.experiment_file import read_definition

EXAMPLE = Path(__file__).parents[2] / "clients/experiments/more-trending.yaml"

FULL = """\
experiment_id: e1
description: "07"
layer: mix
traffic_percent: 12.5
arms:
  - {name: control, weight: 1}
  - name: other
    weight: 3.5
    parameters:
      trending_slots: 4
      per_owner_cap: 2
      exploration: 0.05
      video_exploration: 0.1
      release_id: r1
      ranker: true
audience: {user_id_prefixes: [u], languages: ["no", pt], regions: [KZ]}
overrides: {u1: other, u2: control}
adaptation: {metric: likes, floor: 0.1}
guardrails: {latency_ratio: 1.5, empty_share: 0.02}
"""

EXPECTED = keek.ExperimentDefinition(
    experiment_id="e1",
    description="07",
    layer="mix",
    traffic_percent=12.5,
    arms=[
        keek.Arm(name="control", weight=1.0),
        keek.Arm(
            name="other",
            weight=3.5,
            parameters=keek.FeedParameters(
                trending_slots=4,
                per_owner_cap=2,
                exploration=0.05,
                release_id="r1",
                video_exploration=0.1,
                ranker=True,
            ),
        ),
    ],
    audience=keek.Audience(user_id_prefixes=["u"], languages=["no", "pt"], regions=["KZ"]),
    overrides=[keek.ArmOverride(user_id="u1", arm="other"), keek.ArmOverride(user_id="u2", arm="control")],
    adaptation=keek.Adaptation(metric="likes", floor=0.1),
    guardrails=keek.Guardrails(latency_ratio=1.5, empty_share=0.02),
)

LEAST: dict[str, Any] = {"experiment_id": "e1", "traffic_percent": 10}


def _written(folder: Path, text: str, name: str = "e.yaml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def _json(folder: Path, content: object) -> Path:
    return _written(folder, json.dumps(content), "e.json")


def _refusal(path: Path) -> str:
    """What is said of a file, without its name."""
    with pytest.raises(BadDocumentError) as caught:
        read_definition(path)
    return str(caught.value).removeprefix(f"{path}: ")


def test_a_yaml_file_has_the_names_of_the_contract(tmp_path: Path) -> None:
    assert read_definition(_written(tmp_path, FULL)) == EXPECTED


def test_json_is_taken_as_the_command_line_shows_it(tmp_path: Path) -> None:
    shown = MessageToDict(
        EXPECTED, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    assert isinstance(shown["overrides"], list)
    assert read_definition(_json(tmp_path, shown)) == EXPECTED
    marked = _written(tmp_path, "\ufeff" + json.dumps(shown), "marked.JSON")
    assert read_definition(marked) == EXPECTED


def test_overrides_may_be_a_mapping_in_json_as_well(tmp_path: Path) -> None:
    found = read_definition(_json(tmp_path, LEAST | {"overrides": {"u1": "other"}}))
    assert list(found.overrides) == [keek.ArmOverride(user_id="u1", arm="other")]


def test_the_example_is_seventy_thirty_against_half_and_half() -> None:
    found = read_definition(EXAMPLE)
    assert [arm.parameters.personalised_share for arm in found.arms] == [0.7, 0.5]
    assert [arm.weight for arm in found.arms] == [1.0, 1.0]
    assert {override.arm for override in found.overrides} <= {arm.name for arm in found.arms}


def test_zero_is_not_absent(tmp_path: Path) -> None:
    arms = [
        {"name": "a", "parameters": {"trending_slots": 0, "ranker": False}},
        {"name": "b", "parameters": {}},
    ]
    found = read_definition(_json(tmp_path, LEAST | {"arms": arms}))
    assert found.arms[0].parameters.HasField("trending_slots")
    assert found.arms[0].parameters.HasField("ranker")
    assert not found.arms[1].parameters.HasField("trending_slots")
    assert not found.arms[1].parameters.HasField("ranker")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"traffic_percent": 5}, "experiment_id: is missing"),
        ({"experiment_id": "e1"}, "traffic_percent: is missing"),
        ([], "the file: must be a mapping, not a list"),
        (None, "the file: must be a mapping, not empty"),
        (LEAST | {"arms": [{"name": "a"}, {"weight": 1}]}, "arms[1].name: is missing"),
        (LEAST | {"adaptation": {}}, "adaptation.metric: is missing"),
        (
            LEAST | {"arms": [{"name": "a", "wieght": 1}]},
            "arms[0].wieght: is not known; there are name, weight, parameters",
        ),
        # The names of JSON that ParseDict takes as well: one thing has one name.
        (
            LEAST | {"guardrails": {"latencyRatio": 1}},
            "guardrails.latencyRatio: is not known; there are latency_ratio, empty_share",
        ),
        (
            LEAST | {"arms": [{"name": "a", "parameters": {"ranker": 1}}]},
            "arms[0].parameters.ranker: must be true or false, not 1",
        ),
        (LEAST | {"layer": 7}, "layer: must be text, not 7: put it in quotes"),
        (LEAST | {"layer": ["a"]}, "layer: must be text, not a list"),
        (LEAST | {"layer": None}, "layer: must be text, not empty"),
        (LEAST | {"traffic_percent": "5"}, 'traffic_percent: must be a number, not "5"'),
        (LEAST | {"traffic_percent": True}, "traffic_percent: must be a number, not true"),
        (LEAST | {"traffic_percent": float("nan")}, "traffic_percent: must be a number, not NaN"),
        (LEAST | {"traffic_percent": float("inf")}, "traffic_percent: must be a number, not Infinity"),
        (
            LEAST | {"arms": [{"name": "a", "parameters": {"trending_slots": 2.5}}]},
            "arms[0].parameters.trending_slots: must be a whole number, not 2.5",
        ),
        (LEAST | {"arms": {"a": 1}}, "arms: must be a list, not a mapping"),
        (LEAST | {"arms": ["a"]}, 'arms[0]: must be a mapping, not "a"'),
        (LEAST | {"audience": None}, "audience: must be a mapping, not empty"),
        (LEAST | {"audience": {"languages": "pt"}}, 'audience.languages: must be a list, not "pt"'),
        (LEAST | {"overrides": {"u1": 5}}, "overrides.u1: must be text, not 5: put it in quotes"),
        (LEAST | {"overrides": "u1"}, 'overrides: must be a list, not "u1"'),
        (LEAST | {"overrides": [{"user_id": "u1"}]}, "overrides[0].arm: is missing"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, content: object, said: str) -> None:
    assert _refusal(_json(tmp_path, content)) == said


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    content = {"experiment_id": 1, "arms": [{}]}
    assert _refusal(_json(tmp_path, content)) == (
        "experiment_id: must be text, not 1: put it in quotes; traffic_percent: is missing; "
        "arms[0].name: is missing"
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("overrides: {7: a}", "overrides.7: the user must be text, not 7: put it in quotes"),
        ("audience: {languages: [no]}", "audience.languages[0]: must be text, not false: put it in quotes"),
        ("description: 2026-01-01", 'description: must be text, not "2026-01-01": put it in quotes'),
        ("arms: [{name: 007}]", "arms[0].name: must be text, not 7: put it in quotes"),
        ("layer:", "layer: must be text, not empty"),
    ],
)
def test_what_yaml_takes_for_something_else_is_named(tmp_path: Path, lines: str, said: str) -> None:
    assert _refusal(_written(tmp_path, f"experiment_id: e1\ntraffic_percent: 5\n{lines}\n")) == said


@pytest.mark.parametrize("number", [1 << 31, 1 << 40])
def test_a_number_that_is_too_large_for_its_field_is_refused(tmp_path: Path, number: int) -> None:
    arms = [{"name": "a", "parameters": {"trending_slots": number}}]
    assert "trending_slots" in _refusal(_json(tmp_path, LEAST | {"arms": arms}))
    assert "too large" in _refusal(_json(tmp_path, LEAST | {"traffic_percent": 10**400}))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("e.yaml", "a: 1\nlayer: x\nlayer: y\n", "'layer' stands twice in one mapping"),
        ("e.json", '{"layer": "x", "layer": "y"}', "'layer' stands twice in one mapping"),
        ("e.yaml", "arms:\n  - {name: a, name: b}\n", "'name' stands twice in one mapping"),
        ("e.yaml", "arms: [\n", "line 2, column 1: "),
        ("e.yaml", "a: 1\n---\nb: 2\n", "but found another document"),
        ("e.yaml", "a: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("e.yaml", "a: 2026-13-45\n", "month must be in 1..12"),
        ("e.yaml", "a: \x07\n", "special characters are not allowed"),
        ("e.json", "{", "line 1 column 2"),
        ("e.json", "[" * 100_000, "is nested too deeply"),
        ("e.yaml", "[" * 10_000, "is nested too deeply"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    refusal = _refusal(_written(tmp_path, text, name))
    assert said in refusal
    assert "\n" not in refusal


def test_what_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_bytes(b"experiment_id: \xff\n")
    assert "utf-8" in _refusal(path)


def test_merged_names_may_be_given_other_values(tmp_path: Path) -> None:
    text = """\
experiment_id: e1
traffic_percent: 5
arms:
  - &control {name: control, weight: 1}
  - {<<: *control, name: other}
"""
    assert [(arm.name, arm.weight) for arm in read_definition(_written(tmp_path, text)).arms] == [
        ("control", 1.0),
        ("other", 1.0),
    ]


def test_without_pyyaml_it_is_said_how_to_get_it_and_json_goes_on(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['yaml'] = None\n"
        "from pathlib import Path\n"
        "from keek.cli import main\n"
        "from keek.cli.experiment_file import read_definition\n"
        f"print(read_definition(Path({str(_json(tmp_path, LEAST))!r})).experiment_id)\n"
        f"raise SystemExit(main(['experiments', 'create', {str(_written(tmp_path, FULL))!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "e1\n")
    assert "e.yaml: YAML needs PyYAML: pip install 'keek[yaml]'" in done.stderr
    assert "Traceback" not in done.stderr
