"""A publisher that ends by SIGKILL at a step: `publisher.py RUN STEP`, settings in the environment."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keek_server.releases.registry import ReleaseRegistry
from keek_server.settings import Settings
from keek_training.publishing import models, publish
from keek_training.publishing.examination import Examination
from keek_training.publishing.source import TowerSource
from keek_training.runs import Run

STEPS: dict[str, tuple[Any, str]] = {
    "before the gates": (Examination, "before_loading"),
    "before a model is written": (models, "_write"),
    "before Triton loads": (models, "load_version"),
    "before the corpus is embedded": (publish, "embed"),
    "before the indexes are built": (publish, "build_indexes"),
    "before the second gates": (Examination, "before_serving"),
    "before the folder is complete": (publish, "check_versions"),
    "before it is registered": (ReleaseRegistry, "register"),
    "before it is activated": (ReleaseRegistry, "activate"),
    "before the servers are told": (publish, "bring_out"),
    "before old folders are removed": (publish, "remove_folders"),
}
"""What the publisher is about to do when it ends, in order."""


def main(run: str, step: str) -> None:
    """Publishes, and is killed at the step."""
    owner, name = STEPS[step]
    setattr(owner, name, _ended(getattr(owner, name)))
    asyncio.run(publish.publish(TowerSource.of_run(Run(Path(run))), Settings()))


def _ended(_function: Callable[..., Any]) -> Callable[..., Any]:
    def end(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    return end


if __name__ == "__main__":
    main(*sys.argv[1:])
