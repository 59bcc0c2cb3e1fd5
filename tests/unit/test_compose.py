"""docker-compose.yml and its Dockerfile, as far as they can be checked without Docker."""

import ast
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml

from keek_server.settings import Settings
from keek_server.towers.contract import MODELS
from keek_server.towers.control import CONTROL_KEY, CONTROL_PROTOCOLS

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docker-compose.yml"
TEXT = FILE.read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
SECRETS = {"POSTGRES_PASSWORD", "TRITON_CONTROL_TOKEN"}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+[\w.-]*")

every_service = pytest.mark.parametrize("name", SERVICES)


def stages() -> dict[str, list[str]]:
    """The Dockerfile's stages: each one's instructions, those of the stage it comes from included."""
    found: dict[str, list[str]] = {}
    for line in filter(None, (line.strip() for line in DOCKERFILE.splitlines())):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = list(found.get(match[1], ()))
        elif found and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


def instructions(service: dict[str, Any], keyword: str) -> list[str]:
    """What the image that a service builds says under one keyword; nothing when it builds none."""
    target = service.get("build", {}).get("target")
    lines = stages()[target] if target else []
    return [line.split(maxsplit=1)[1] for line in lines if line.split()[0] == keyword]


def with_defaults(text: str) -> str:
    """Compose's `${NAME:-default}`, with nothing set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def is_job(service: dict[str, Any]) -> bool:
    """Whether it runs once and ends."""
    return bool(service["restart"] == "no")


def check_schema(path: Path) -> int:
    """check-jsonschema's exit code for the Compose schema that it carries."""
    schema = ["--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([sys.executable, "-m", "check_jsonschema", *schema, path], check=False).returncode


def test_the_file_keeps_to_the_compose_schema(tmp_path: Path) -> None:
    broken = tmp_path / FILE.name
    broken.write_text(TEXT.replace("healthcheck:", "healthchek:"), "utf-8")
    assert check_schema(FILE) == 0
    assert check_schema(broken) != 0


@every_service
def test_every_service_that_stays_has_a_health_check(name: str) -> None:
    service = SERVICES[name]
    if is_job(service):
        assert service["healthcheck"] == {"disable": True}
    else:
        assert service.get("healthcheck", {}).get("test") or instructions(service, "HEALTHCHECK")


@every_service
def test_no_service_runs_as_root_or_may_become_root(name: str) -> None:
    service = SERVICES[name]
    user = str(service.get("user") or instructions(service, "USER")[-1])
    assert user.split(":")[0] not in {"", "0", "root"}
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


@every_service
def test_every_image_is_pinned(name: str) -> None:
    image = SERVICES[name]["image"]
    assert PINNED.fullmatch(image)
    if "build" in SERVICES[name]:
        assert image.endswith(f":{VERSION}")


def test_the_base_image_is_pinned() -> None:
    base = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert base
    assert PINNED.fullmatch(base[1])
    foreign = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) - set(stages())
    assert foreign == {"${PYTHON_IMAGE}"}


def test_only_the_grpc_port_is_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if service.get("ports")}
    assert {name: [with_defaults(port) for port in ports] for name, ports in published.items()} == {
        "server": ["127.0.0.1:50051:50051"]
    }


def test_all_but_the_server_can_reach_and_be_reached_by_nobody_outside() -> None:
    assert COMPOSE["networks"]["internal"] == {"internal": True}
    for name in SERVICES.keys() - {"server"}:
        networks = SERVICES[name].get("networks", ())
        assert set(networks) == {"internal"} or SERVICES[name]["network_mode"] == "none"


def test_what_is_copied_into_the_images_exists_and_reaches_the_build() -> None:
    ignore = (ROOT / ".dockerignore").read_text("utf-8").split("\n")
    let_through = [line[1:] for line in ignore if line.startswith("!")]
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        *sources, _target = line.split()
        if sources[0].startswith("--from="):
            assert sources[0].removeprefix("--from=") in stages()
            continue
        for source in sources:
            assert (ROOT / source).exists(), source
            assert any(fnmatch(source, rule) or rule.startswith(f"{source}/") for rule in let_through), source


def test_every_keek_variable_is_a_setting() -> None:
    known = {f"KEEK_{name.upper()}" for name in Settings.model_fields}
    used = set(re.findall(r"\bKEEK_[A-Z_]+", TEXT + DOCKERFILE))
    assert used
    assert used <= known


def test_a_missing_secret_stops_compose_and_every_variable_is_documented() -> None:
    variables = set(re.findall(r"\$\{(\w+)(:[?-])", TEXT))
    assert {name for name, kind in variables if kind == ":?"} == SECRETS
    assert not [name for name, kind in variables if kind == ":-" and name in SECRETS]
    assert len(re.findall(r"\$", TEXT)) == len(re.findall(r"\$\{\w+:[?-]", TEXT))
    example = (ROOT / "deploy" / ".env.example").read_text("utf-8")
    for name, _ in variables:
        assert re.search(rf"^#?{name}=", example, re.MULTILINE), name
    for name in SECRETS:
        assert re.search(rf"^{name}=$", example, re.MULTILINE), f"{name} has a value that would be used"


@pytest.mark.parametrize("name", ["triton", "triton-cpu"])
def test_triton_loads_the_towers_and_guards_its_control_api(name: str) -> None:
    command = SERVICES[name]["command"]
    assert {option for option in command if option.startswith("--load-model")} == {
        f"--load-model={tower.model}" for tower in MODELS
    }
    (guard,) = (option for option in command if option.startswith("--grpc-restricted-protocol"))
    assert guard.startswith(f"--grpc-restricted-protocol={','.join(CONTROL_PROTOCOLS)}:{CONTROL_KEY}=${{")
    assert "--model-control-mode=explicit" in command


def test_only_the_gpu_variant_of_triton_reserves_a_gpu() -> None:
    (device,) = SERVICES["triton"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    differing = {
        key for key in SERVICES["triton"] if SERVICES["triton"][key] != SERVICES["triton-cpu"].get(key)
    }
    assert differing == {"deploy", "profiles"}


def locked(name: str) -> dict[str, str]:
    """The packages of requirements/NAME.lock and their versions."""
    text = (ROOT / "requirements" / f"{name}.lock").read_text("utf-8")
    return dict(re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", text, re.MULTILINE))


def imported(folder: Path) -> set[str]:
    """The top-level modules that a package's modules import, the standard library's and Keek's left out."""
    names = set()
    for path in folder.rglob("*.py"):
        if path.name == "onnxruntime_backend.py":
            continue  # runs inside Triton
        if path.parent.name == "clip":
            continue  # needs the extra keek[clip], and says so where it is missing
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
    tops = {name.split(".")[0] for name in names}
    return tops - sys.stdlib_module_names - {"keek", "keek_server", "keek_training"}


@pytest.mark.parametrize("name", ["server", "training"])
def test_the_images_install_what_was_tested(name: str) -> None:
    installed, tested = locked(name), locked("dev")
    assert installed
    assert {package: tested.get(package) for package in installed} == installed
    assert "://" not in (ROOT / "requirements" / f"{name}.lock").read_text("utf-8")


def test_a_server_with_a_gpu_installs_the_same_but_for_faiss() -> None:
    installed, with_gpu = locked("server"), locked("gpu")
    assert with_gpu.pop("faiss-gpu") == installed.pop("faiss-cpu")
    added = with_gpu.keys() - installed.keys()
    assert {package.split("-")[0] for package in added} == {"nvidia"}
    assert {package: with_gpu.get(package) for package in installed} == installed
    assert "://" not in (ROOT / "requirements" / "gpu.lock").read_text("utf-8")


def test_no_extra_brings_two_packages_of_faiss_which_overwrite_each_other() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]

    def brought(extra: str) -> set[str]:
        found = set()
        for requirement in extras[extra]:
            inner = re.match(r"keek\[([\w,-]+)\]", requirement)
            found |= set().union(*map(brought, inner[1].split(","))) if inner else {requirement}
        return {requirement for requirement in found if requirement.startswith("faiss")}

    with_one = {extra for extra in extras if len(brought(extra)) == 1}
    assert with_one == {"server", "gpu", "gpu-cuvs", "training", "clip"}
    assert {extra for extra in extras if brought(extra)} == with_one


SAID_WHERE_MISSING = {"matplotlib"}
"""Of another extra, for one option of a command that says so."""


@pytest.mark.parametrize(
    ("name", "folder"), [("server", "server/keek_server"), ("training", "training/keek_training")]
)
def test_the_images_install_what_is_imported(name: str, folder: str) -> None:
    installed = locked(name)
    providers = packages_distributions()
    for module in imported(ROOT / folder) - SAID_WHERE_MISSING:
        packages = {package.lower().replace("_", "-") for package in providers[module]}
        assert packages & installed.keys(), f"{folder} imports {module}"
