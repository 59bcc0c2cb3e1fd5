"""The light client needs grpcio and protobuf, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

import keek

READ_DETAILS = """
import grpc, keek
from keek.errors import from_rpc_error
status = bytes.fromhex({status!r})
trailing = grpc.aio.Metadata(("grpc-status-details-bin", status))
error = from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.INVALID_ARGUMENT, None, trailing, "told"))
assert error.details.reason == "INVALID_REQUEST", error.details
assert error.violations == (keek.FieldViolation("user_id", "must not be empty"),), error.details
"""

BLOCK = """
import importlib.abc, sys
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        allowed = ("google", "google.protobuf", "google._upb")
        if name.startswith("google") and ".".join(name.split(".")[:2]) not in allowed:
            raise ModuleNotFoundError(f"{name} is blocked", name=name)
sys.meta_path.insert(0, Blocker())
"""

UNIMPORTABLE = """
try:
    import google.rpc
except ImportError:
    pass
else:
    raise SystemExit("google.rpc is there")
"""


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def status() -> str:
    """A google.rpc.Status in hexadecimal, made with the public message classes."""
    from google.rpc import error_details_pb2, status_pb2

    status = status_pb2.Status(code=3, message="told")
    violation = error_details_pb2.BadRequest.FieldViolation(field="user_id", description="must not be empty")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="INVALID_REQUEST"))
    status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return bytes(status.SerializeToString()).hex()


def test_importing_the_client_and_its_cli_imports_grpc_protobuf_and_the_standard_library_alone() -> None:
    # What grpc imports by itself (health checking, where it is installed) is not the client's choice.
    code = (
        "import sys, grpc; before = set(sys.modules)\n"
        "import keek, keek.cli\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    imported = [name for name in _run(code).split() if name.split(".")[0] not in sys.stdlib_module_names]
    assert {name.split(".")[0] for name in imported} == {"keek", "google", "grpc"}
    google = {".".join(name.split(".")[:2]) for name in imported if name.startswith("google.")}
    assert google <= {"google.protobuf", "google._upb"}


def test_details_are_read_where_googleapis_common_protos_is_not_installed(status: str) -> None:
    _run(BLOCK + UNIMPORTABLE + READ_DETAILS.format(status=status))


@pytest.mark.parametrize("order", ["before", "after"])
def test_details_are_read_where_googleapis_common_protos_is_imported_too(status: str, order: str) -> None:
    public = "from google.rpc import error_details_pb2, status_pb2\nfrom grpc_health.v1 import health_pb2\n"
    read = READ_DETAILS.format(status=status)
    check = f"assert status_pb2.Status.FromString(bytes.fromhex({status!r})).message == 'told'\n"
    _run(public + read + check if order == "before" else read + public + check)


def test_the_version_is_the_packages_own() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    assert f'\nversion = "{keek.__version__}"\n' in pyproject.read_text()


def test_everything_that_is_exported_exists() -> None:
    assert sorted(keek.__all__) == sorted(set(keek.__all__))
    assert all(hasattr(keek, name) for name in keek.__all__)
