"""The folders of releases: written aside, renamed, and removed when no server may need them again."""

import asyncio
import logging
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from keek_server.errors import NotFoundError
from keek_server.files import sync
from keek_server.releases.registry import ReleaseRegistry
from keek_server.storage.database import Database
from keek_training.publishing.repository import publish_folder

logger = logging.getLogger(__name__)

_ASIDE = ".tmp"
_JOURNAL = "publishing.txt"


@contextmanager
def written_folder(release_dir: Path, release_id: str) -> Iterator[Path]:
    """A folder that gets its final name only when the block ends without an error.

    What an earlier publisher left is removed; no other one may be under way.
    """
    for left_over in release_dir.glob(f"*{_ASIDE}"):
        shutil.rmtree(left_over)
    folder = release_dir / f"{release_id}{_ASIDE}"
    folder.mkdir()
    yield folder
    publish_folder(folder, release_dir / release_id)


@contextmanager
def unregistered_folder(release_dir: Path, release_id: str) -> Iterator[None]:
    """Writes down first which release is about to get a folder, for `remove_unregistered`."""
    journal = release_dir / _JOURNAL
    aside = journal.with_name(_JOURNAL + _ASIDE)
    aside.write_text(release_id, "utf-8")
    sync(aside)
    aside.replace(journal)
    sync(release_dir)
    yield


async def remove_unregistered(registry: ReleaseRegistry, release_dir: Path) -> None:
    """Removes the folder of a release whose publisher ended before it was registered."""
    try:
        release_id = (release_dir / _JOURNAL).read_text("utf-8")
    except FileNotFoundError:
        return
    try:
        await registry.get(release_id)
    except NotFoundError:
        folder = release_dir / release_id
        if release_id and folder.parent == release_dir and folder.is_dir():
            await asyncio.to_thread(remove_folders, [folder])
    (release_dir / _JOURNAL).unlink()


async def outdated_folders(database: Database, release_dir: Path) -> list[Path]:
    """The folders of releases that no plan can name any more; what is none of this registry stays."""
    names = await asyncio.to_thread(_names, release_dir)
    return [release_dir / release_id for release_id in await ReleaseRegistry(database).removed(names)]


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_dir()}


def remove_folders(folders: Iterable[Path]) -> None:
    """Removes them; servers that have their files mapped keep what they have.

    An error is logged and no more: the new release serves already.
    """
    for folder in folders:
        try:
            # Nobody finds half a release, whenever this is cut off; the next publisher removes the rest.
            shutil.rmtree(folder.rename(folder.with_name(folder.name + _ASIDE)))
        except OSError as error:
            logger.warning("the folder of a release that is not needed any more stays: %s", error)
