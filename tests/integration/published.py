"""What the tests of publishing share: a stack with videos, exported towers, and what is there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gate_towers import user_tower
from onnx import ModelProto, save

from keek_server.embedded import EmbeddedStack
from keek_server.releases.registry import ReleaseRegistry
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import import_dataset
from keek_training.publishing.source import TowerSource
from keek_training.runs import Run

SYNTH = "synth:users=20,videos=60,interactions=400,end=2026-01-01"


@asynccontextmanager
async def stack_with_videos(settings: Settings) -> AsyncIterator[EmbeddedStack]:
    """A running stack whose database has a small corpus and what its users did."""
    async with EmbeddedStack(settings) as stack:
        async with open_database(stack.settings) as database:
            await import_dataset(database, open_dataset(SYNTH))
        yield stack


def exported(folder: Path, videos: ModelProto) -> TowerSource:
    """An exported run in the folder."""
    run = Run(folder)
    run.start()
    save(user_tower(), run.user_tower)
    save(videos, run.video_tower)
    run.write_metrics({}, [])
    run.write_export({"history_length": 5})
    return TowerSource.of_run(run)


async def active(settings: Settings) -> str | None:
    """The release that serves."""
    async with open_database(settings) as database:
        return await ReleaseRegistry(database).active()


def folders(settings: Settings) -> set[str]:
    """Of releases."""
    return {path.name for path in settings.release_dir.iterdir() if path.is_dir()}


def versions(settings: Settings) -> set[str]:
    """Of the user tower in the model repository."""
    return {path.name for path in settings.model_repository.glob("user_tower/*") if path.name.isdecimal()}
