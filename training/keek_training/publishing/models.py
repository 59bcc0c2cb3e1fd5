"""The models of a new release: written to the repository, and loaded by Triton."""

import asyncio
from collections.abc import Sequence

from keek_server.settings import Settings
from keek_server.towers.contract import RANKER, USER_TOWER, VIDEO_TOWER
from keek_training.publishing.clip import ClipSource, place_clip
from keek_training.publishing.kept import KeptRelease, ReleaseModels
from keek_training.publishing.repository import load_version, write_version
from keek_training.publishing.source import TowerSource


async def publish_models(
    source: TowerSource,
    clip: ClipSource | None,
    version: int,
    kept: Sequence[KeptRelease],
    settings: Settings,
) -> ReleaseModels:
    """Makes two towers, a CLIP and a ranker available in Triton as `version`; CLIP where it is new.

    Args:
        source: The towers, and the ranker if there is one.
        clip: The CLIP of the release, if it has one.
        version: A number that no model has used yet.
        kept: The releases whose CLIP may be used again.
        settings: Where Triton and its repository are.

    Raises:
        SetupError: When the repository is none, or Triton refuses a model.
    """
    models = await asyncio.to_thread(_write, source, clip, version, kept, settings)
    await load_version(settings, version, models.by_name)
    return models


def _write(
    source: TowerSource,
    clip: ClipSource | None,
    version: int,
    kept: Sequence[KeptRelease],
    settings: Settings,
) -> ReleaseModels:
    repository = settings.model_repository
    return ReleaseModels(
        user_tower=write_version(repository, USER_TOWER, version, source.user_tower),
        video_tower=write_version(repository, VIDEO_TOWER, version, source.video_tower),
        clip=place_clip(clip, version, kept, repository) if clip else None,
        ranker=write_version(repository, RANKER, version, source.ranker) if source.ranker else None,
    )
