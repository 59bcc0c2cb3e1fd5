"""A publisher that ends by SIGKILL at a step: `publisher.py RUN STEP`, settings in the environment."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keek_server.releases.manifest import GateResult
from keek_server.releases.registry import ReleaseRegistry
from keek_server.settings import Settings
from keek_training.gates.results import at_most
from keek_training.publishing import (
    building,
    embedding,
    examination,
    models,
    publish,
    recovery,
    repository,
)
from keek_training.publishing.checkpoint import Checkpoint
from keek_training.publishing.examination import Examination
from keek_training.publishing.journal import Journal
from keek_training.publishing.source import TowerSource
from keek_training.runs import Run

PART = 16
"""Videos that this publisher embeds together."""

STEPS: dict[str, tuple[Any, str, int]] = {
    "before the journal is written": (Journal, "save", 0),
    "before a number is taken": (publish, "reserve_version", 0),
    "before a model has its name": (repository, "publish_folder", 0),
    "between both models": (repository, "publish_folder", 1),
    "before Triton loads": (models, "load_version", 0),
    "while the corpus is embedded": (Checkpoint, "add", 2),
    "before the indexes are built": (building, "build_indexes", 0),
    "before the second gates": (examination, "measure", 0),
    "before the folder is complete": (building, "check_versions", 0),
    "before it is registered": (ReleaseRegistry, "register", 0),
    "before it is activated": (ReleaseRegistry, "activate", 0),
    "before the journal is removed": (Journal, "remove", 1),
    "before the servers are told": (publish, "bring_out", 0),
    "before old folders are removed": (publish, "remove_folders", 0),
    "before old models are removed": (publish, "prune_versions", 0),
}
"""What the publisher is about to do when it ends, in order: the function, and its calls that go well."""

REMOVING: dict[str, tuple[Any, str, int]] = {
    "before its folder is removed": (recovery, "remove_folders", 0),
    "before its models are removed": (recovery, "withdraw_version", 0),
}
"""The same for a publisher that finds what another one left, of other towers."""

PRUNING = "when an old model has lost its file"
"""The same within a step: the folder of the model is still there."""


def preflight(*_: object, **__: object) -> list[GateResult]:
    """Instead of the gates, which take seconds and have tests of their own."""
    return [at_most("size_mb", 1.0, 2.0, "not measured here")]


async def measure(*_: object, **__: object) -> list[GateResult]:
    """See `preflight`."""
    return preflight()


def report(*_: object) -> Path:
    """See `preflight`."""
    return Path("report.html")


def main(run: str, step: str) -> None:
    """Publishes, and is killed at the step."""
    embedding._LARGEST_BATCH = PART
    examination.preflight, examination.measure = preflight, measure
    Examination._report = report  # type: ignore[method-assign]
    if step == PRUNING:
        setattr(publish, "prune_versions", _cut_off(publish.prune_versions))  # noqa: B010
    else:
        owner, name, spared = (STEPS | REMOVING)[step]
        setattr(owner, name, _ended(getattr(owner, name), spared))
    asyncio.run(publish.publish(TowerSource.of_run(Run(Path(run))), Settings()))


def _ended(function: Callable[..., Any], spared: int) -> Callable[..., Any]:
    calls = 0

    def end(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > spared:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return end


def _cut_off(remove: Callable[..., None]) -> Callable[..., None]:
    def begin(*arguments: Any) -> None:
        setattr(os, "rmdir", _ended(os.rmdir, 0))  # noqa: B010
        remove(*arguments)

    return begin


if __name__ == "__main__":
    main(*sys.argv[1:])
