"""The models of a new release: written to the repository, and loaded by Triton."""

import asyncio
from collections.abc import Sequence

from keek_server.settings import Settings
from keek_server.towers.contract import USER_TOWER, VIDEO_TOWER
from keek_training.publishing.clip import ClipSource, place_clip
from keek_training.publishing.kept import KeptRelease, ReleaseModels
from keek_training.publishing.repository import load_version, prune_versions, write_version
from keek_training.runs import Run


async def publish_models(
    run: Run, clip: ClipSource | None, version: int, kept: Sequence[KeptRelease], settings: Settings
) -> ReleaseModels:
    """Makes an exported run and a CLIP available in Triton as `version`; CLIP where it is new.

    Args:
        run: The exported run.
        clip: The CLIP of the release, if it has one.
        version: A number that no model has used yet.
        kept: The releases whose models stay available.
        settings: Where Triton and its repository are.

    Raises:
        SetupError: When the repository is none, or Triton refuses a model.
    """
    models = await asyncio.to_thread(_write, run, clip, version, kept, settings)
    await load_version(settings, version, models.by_name)
    return models


def _write(
    run: Run, clip: ClipSource | None, version: int, kept: Sequence[KeptRelease], settings: Settings
) -> ReleaseModels:
    repository = settings.model_repository
    models = ReleaseModels(
        user_tower=write_version(repository, USER_TOWER, version, run.user_tower),
        video_tower=write_version(repository, VIDEO_TOWER, version, run.video_tower),
        clip=place_clip(clip, version, kept, repository) if clip else None,
    )
    prune_versions(repository, [models.by_name, *(release.by_name for release in kept)], version)
    return models
