"""The folders of releases: written aside, renamed, and removed when no server may need them again."""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from keek_server.releases.registry import ReleaseRegistry
from keek_server.storage.database import Database
from keek_training.publishing.repository import ASIDE, publish_folder, remove, remove_aside

logger = logging.getLogger(__name__)


@contextmanager
def written_folder(release_dir: Path, release_id: str) -> Iterator[Path]:
    """A folder that gets its final name only when the block ends without an error.

    What an earlier publisher left is removed; no other one may be under way.
    """
    remove_aside(release_dir)
    folder = release_dir / f"{release_id}{ASIDE}"
    folder.mkdir()
    yield folder
    publish_folder(folder, release_dir / release_id)


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
            remove(folder)
        except OSError as error:
            logger.warning("the folder of a release that is not needed any more stays: %s", error)
