"""The CLIP of a new release: of an export, or the one that the live release has."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keek_server.errors import SetupError
from keek_server.files import sha256_of
from keek_server.releases.manifest import ClipVersion, TowerVersion
from keek_server.settings import Settings
from keek_server.towers.clip_record import CLIP_FILES, ClipRecord
from keek_server.towers.contract import CLIP_IMAGE, CLIP_TEXT, TowerContract
from keek_training.clip.files import DEFAULT_NAME, ClipExport
from keek_training.publishing.kept import KeptRelease
from keek_training.publishing.repository import MODEL_FILE, write_version

NO_CLIP: Final = "none"
"""What is given instead of an export's name for a release without CLIP."""


@dataclass(frozen=True, slots=True)
class ClipSource:
    """Where a release's CLIP comes from."""

    record: ClipRecord
    folder: Path
    """Holds CLIP_FILES."""
    image: Path
    """An ONNX file."""
    text: Path

    def copy_files(self, folder: Path) -> None:
        """Copies what the server reads without Triton into a release's folder."""
        for name in CLIP_FILES:
            shutil.copyfile(self.folder / name, folder / name)


def choose_clip(name: str | None, live: KeptRelease | None, settings: Settings) -> ClipSource | None:
    """The CLIP that a new release gets.

    Args:
        name: Of an export; NO_CLIP for none; None for the latest export, or without one what the
            live release has.
        live: The release that serves.
        settings: Say where exports, releases and models are.

    Raises:
        SetupError: When there is no such export, or the live release's CLIP is not there any more.
    """
    if name == NO_CLIP:
        return None
    export = ClipExport.named(name or DEFAULT_NAME, settings)
    if name is not None or export.exists:
        return ClipSource(export.record(), export.folder, export.model(CLIP_IMAGE), export.model(CLIP_TEXT))
    if live is None or live.clip is None:
        return None
    return _carried_over(live.release_id, live.clip, settings)


def _carried_over(release_id: str, clip: ClipVersion, settings: Settings) -> ClipSource:
    folder = settings.release_dir / release_id
    image, text = (
        settings.model_repository / encoder.model / str(version.version) / MODEL_FILE
        for encoder, version in ((CLIP_IMAGE, clip.image), (CLIP_TEXT, clip.text))
    )
    for path in (*(folder / name for name in CLIP_FILES), image, text):
        if not path.is_file():
            raise SetupError(
                f"the CLIP of release {release_id} cannot be carried over, {path} is missing: "
                f"keek-train export-clip, or publish with --clip {NO_CLIP}"
            )
    return ClipSource(ClipRecord.load(folder), folder, image, text)


def place_clip(
    source: ClipSource, version: int, kept: Sequence[KeptRelease], repository: Path
) -> ClipVersion:
    """Puts both encoders into the repository, each as `version` unless a kept release has the same file.

    CLIP changes rarely and is large: what is there already is neither stored nor loaded twice.
    """
    record = source.record
    return ClipVersion(
        clip_model=record.clip_model,
        image=_place(CLIP_IMAGE, source.image, version, kept, repository),
        text=_place(CLIP_TEXT, source.text, version, kept, repository),
        model=record.model,
        pretrained=record.pretrained,
        untrained=record.untrained,
    )


def _place(
    encoder: TowerContract, model: Path, version: int, kept: Sequence[KeptRelease], repository: Path
) -> TowerVersion:
    sha256 = sha256_of(model)
    for release in kept:
        known = release.by_name.get(encoder.model)
        if known is None or known.sha256 != sha256:
            continue
        if (repository / encoder.model / str(known.version) / MODEL_FILE).is_file():
            return known
    return write_version(repository, encoder, version, model)
