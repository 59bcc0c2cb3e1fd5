"""The alias in Milvus: the active release's collection, for others who search there.

Keek itself never searches by it: a feed uses the collection of the release that it captured.
"""

import asyncio
import logging

from keek_server.errors import KeekError
from keek_server.releases.registry import ReleaseRegistry
from keek_server.retrieval.milvus_store import Milvus

logger = logging.getLogger(__name__)


async def point_alias(registry: ReleaseRegistry, milvus: Milvus) -> None:
    """Switches the alias to the active release, unless it is; one that is not in Milvus leaves it as it is.

    Raises:
        UnavailableError, SetupError: When the database or Milvus does not do its part.
    """
    release_id = await registry.active()
    if release_id is None:
        return
    manifest = (await registry.get(release_id)).manifest
    if manifest["index"]["kind"] == "milvus":
        await asyncio.to_thread(milvus.point_alias, release_id)


async def keep_alias(registry: ReleaseRegistry, milvus: Milvus, *, poll_s: float) -> None:
    """Switches the alias after every change of what is active, by whomever, until cancelled.

    What fails is tried again at the next look; no release waits for it.
    """
    failing = False
    while True:
        try:
            await point_alias(registry, milvus)
        except KeekError as error:
            if not failing:
                logger.warning("the alias in Milvus is not kept at present: %s", error)
            failing = True
        else:
            failing = False
        await asyncio.sleep(poll_s)
