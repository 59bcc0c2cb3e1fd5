"""Which versions the releases that may serve again are made of: those have to stay."""

from collections.abc import Collection
from typing import Final

from pydantic import BaseModel

from keek_server.releases.manifest import ClipVersion, TowerVersion
from keek_server.releases.plan import ReleaseState
from keek_server.releases.registry import ReleaseRegistry
from keek_server.storage.database import Database
from keek_server.towers.contract import RANKER, USER_TOWER, VIDEO_TOWER

_READ: Final = 100


class ReleaseModels(BaseModel):
    """The versions of the models that make up a release."""

    user_tower: TowerVersion
    video_tower: TowerVersion
    clip: ClipVersion | None = None
    ranker: TowerVersion | None = None

    @property
    def by_name(self) -> dict[str, TowerVersion]:
        """The version of each model, by the model's name."""
        models = {USER_TOWER.model: self.user_tower, VIDEO_TOWER.model: self.video_tower}
        if self.clip is not None:
            models |= {encoder.model: entry for encoder, entry in self.clip.models.items()}
        if self.ranker is not None:
            models[RANKER.model] = self.ranker
        return models


class KeptRelease(ReleaseModels):
    """What a manifest says of its models; manifests of other versions of Keek are read as well."""

    release_id: str
    history_length: int = 50


async def active_release(database: Database) -> KeptRelease | None:
    """The release that serves; None before the first one."""
    registry = ReleaseRegistry(database)
    release_id = await registry.active()
    if release_id is None:
        return None
    return KeptRelease.model_validate((await registry.get(release_id)).manifest)


async def ready_releases(database: Database) -> list[KeptRelease]:
    """The newest releases that may serve, newest first."""
    newest = await ReleaseRegistry(database).list(_READ)
    return [KeptRelease.model_validate(each.manifest) for each in newest if each.state is ReleaseState.READY]


async def kept_releases(database: Database, newest: int, held: Collection[str] = ()) -> list[KeptRelease]:
    """The releases that stay; see `ReleaseRegistry.retire`, which gives up all others."""
    kept = await ReleaseRegistry(database).retire(newest, held)
    return [KeptRelease.model_validate(release.manifest) for release in kept]
