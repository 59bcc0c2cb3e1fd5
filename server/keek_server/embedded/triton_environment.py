"""Finds what the embedded Triton is made of, and puts its backend together.

Everything comes from a virtual environment with the nvidia-pytriton wheel: the server, the
libraries it was linked with, and the parts of its Python backend.
"""

import hashlib
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from keek_server.errors import SetupError

BACKEND_MODEL = Path(__file__).with_name("onnxruntime_backend.py")
"""What becomes the backend's `model.py`."""

_QUERY_TIMEOUT_S = 30.0
_QUERY = """
import ctypes, importlib.metadata, importlib.util, json, sys, sysconfig
from pathlib import Path
version = "%d.%d" % sys.version_info[:2]
library = f"libpython{version}.so.1.0"
config = sysconfig.get_config_vars()
places = [config["LIBDIR"], f"{config['LIBDIR']}/{config.get('MULTIARCH')}", f"{sys.base_prefix}/lib"]
folder = next((place for place in places if Path(place, library).exists()), None)
try:
    found = folder is not None or bool(ctypes.CDLL(library))
except OSError:
    found = False
spec = importlib.util.find_spec("pytriton")
print(json.dumps({
    "python_version": version,
    "python_library": library if found else None,
    "python_library_folder": folder,
    "pytriton": spec and spec.submodule_search_locations[0],
    "numpy": importlib.metadata.version("numpy") if importlib.util.find_spec("numpy") else None,
    "onnxruntime": bool(importlib.util.find_spec("onnxruntime")),
}))
"""


@dataclass(frozen=True, slots=True)
class TritonEnvironment:
    """An environment that can run tritonserver with the backend."""

    programs: Path
    """Its `bin` folder: the backend's Python finds its packages through the `python3` there."""
    server: Path
    """The tritonserver binary."""
    libraries: tuple[Path, ...]
    """Folders for the dynamic loader."""
    backend_parts: tuple[Path, ...]
    """The files of Triton's Python backend, of which the stub is for this environment's Python."""


def find_environment(environment: Path) -> TritonEnvironment:
    """Asks the environment's own Python where things are.

    Raises:
        SetupError: the environment is missing, or lacks something; says what to do.
    """
    python = environment.absolute() / "bin" / "python"
    advice = "Run `make setup`, or set KEEK_TRITON_URL to a server of your own."
    if not python.exists():
        raise SetupError(f"the embedded Triton's environment {environment} is missing. {advice}")
    answer = _query(python, advice)
    if answer["pytriton"] is None or not answer["onnxruntime"] or answer["numpy"] is None:
        raise SetupError(f"{environment} lacks nvidia-pytriton, onnxruntime or numpy. {advice}")
    if not answer["numpy"].startswith("1."):
        # With numpy 2 the backend's process hands out empty tensors.
        raise SetupError(f"{environment} has numpy {answer['numpy']}, but Triton needs numpy 1. {advice}")
    if answer["python_library"] is None:
        raise SetupError(
            f"the Python {answer['python_version']} of {environment} has no shared library, which Triton's "
            f"backend needs. Install libpython{answer['python_version']} or a Python built with "
            "--enable-shared, then run `make clean setup`."
        )
    return _environment(python, answer)


def _query(python: Path, advice: str) -> dict[str, str | None]:
    command = [str(python), "-I", "-c", _QUERY]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False
        )
    except OSError as error:
        raise SetupError(f"{python} cannot be run: {error.strerror}. {advice}") from error
    except subprocess.TimeoutExpired as error:
        raise SetupError(f"{python} did not answer within {error.timeout:g} s. {advice}") from error
    if result.returncode != 0:
        reason = (result.stderr.splitlines() or ["it says nothing"])[-1]
        raise SetupError(f"{python} fails with code {result.returncode}: {reason}. {advice}")
    answer: dict[str, str | None] = json.loads(result.stdout)
    return answer


def _environment(python: Path, answer: dict[str, str | None]) -> TritonEnvironment:
    package = Path(str(answer["pytriton"]))
    triton = package / "tritonserver"
    folder = answer["python_library_folder"]
    stub = triton / "python_backend_stubs" / str(answer["python_version"]) / "triton_python_backend_stub"
    if not stub.exists():
        raise SetupError(f"nvidia-pytriton has no backend for Python {answer['python_version']}")
    return TritonEnvironment(
        programs=python.parent,
        server=triton / "bin" / "tritonserver",
        libraries=(package.parent / "nvidia_pytriton.libs", *([Path(folder)] if folder else [])),
        backend_parts=(*sorted((triton / "backends" / "python").iterdir()), stub),
    )


def assemble_backends(environment: TritonEnvironment, root: Path) -> Path:
    """A backend directory for tritonserver with one backend, `onnxruntime`.

    Triton takes a folder with a `model.py` for a backend written in Python when the Python
    backend's own files lie beside it; as copies, since it resolves symbolic links. The
    directory is named by its contents' digest: made once, and again when a part changes.

    Args:
        environment: Where the parts come from.
        root: Where the directory is made; others in there are removed.
    """
    sources = {part.name: part for part in environment.backend_parts if part.is_file()}
    sources["model.py"] = BACKEND_MODEL
    digest = hashlib.sha256()
    for name, source in sorted(sources.items()):
        digest.update(name.encode() + hashlib.sha256(source.read_bytes()).digest())
    target = root / digest.hexdigest()[:16]
    if not target.exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        # Made aside and renamed: a directory with the right name is complete.
        aside = Path(tempfile.mkdtemp(dir=root))
        (aside / "onnxruntime").mkdir()
        for name, source in sources.items():
            shutil.copy2(source, aside / "onnxruntime" / name)
        aside.rename(target)
    return target
