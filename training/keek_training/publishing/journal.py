"""What a publisher is at, on the disk: after a crash the next one goes on with it, or takes it back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from keek_server.files import sha256_of, written_aside
from keek_server.settings import Settings
from keek_server.towers.contract import CLIP_IMAGE, CLIP_TEXT
from keek_training.publishing.clip import ClipSource
from keek_training.publishing.source import TowerSource

JOURNAL_FILE: Final = "publishing.json"
CHECKPOINT_FILE: Final = "publishing.vectors"
_ASIDE: Final = "publishing.json.tmp"

_DECISIVE: Final = ("gate_", "index_", "audience_limit")
"""How the names of settings begin that decide what a release is, beside its models."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a release is made from: the same inputs give the same models and the same vectors."""

    sha256: Mapping[str, str]
    """Of each model's file, by the model's name."""
    clip_model: str
    """Empty without CLIP."""
    history_length: int

    @classmethod
    def of(cls, source: TowerSource, clip: ClipSource | None) -> "Inputs":
        """Reads all files; one that is not there has no checksum, and is refused later."""
        files = {tower.model: source.path(tower) for tower in source.models}
        if clip is not None:
            files |= {CLIP_IMAGE.model: clip.image, CLIP_TEXT.model: clip.text}
        sha256 = {model: sha256_of(path) for model, path in files.items() if path.is_file()}
        return cls(sha256, clip.record.clip_model if clip else "", source.history_length)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all of it, as hexadecimal digits."""
        return _digest(asdict(self))


def terms_of(source: str, live_id: str | None, forced_reason: str, settings: Settings) -> str:
    """SHA-256 of what a release was judged by: what was judged otherwise is built and judged again."""
    decisive = {
        name: value for name, value in settings.model_dump(mode="json").items() if name.startswith(_DECISIVE)
    }
    return _digest({"source": source, "live": live_id, "forced": forced_reason, **decisive})


class Journal(BaseModel):
    """The one release that is being published; written before anything of it is."""

    model_config = ConfigDict(frozen=True)

    release_id: str
    version: int
    """Of those of its models that are new."""
    fingerprint: str
    """Of its inputs."""
    terms: str
    """See `terms_of`."""

    def save(self, release_dir: Path) -> None:
        """Writes it down; it is on the disk then."""
        with written_aside(release_dir / JOURNAL_FILE, release_dir / _ASIDE) as file:
            file.write(self.model_dump_json().encode())

    @classmethod
    def load(cls, release_dir: Path) -> "Journal | None":
        """What a publisher was at that did not come to its end; None when the last one did."""
        try:
            return cls.model_validate_json((release_dir / JOURNAL_FILE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    @staticmethod
    def remove(release_dir: Path) -> None:
        """Says that nothing is being published."""
        (release_dir / CHECKPOINT_FILE).unlink(missing_ok=True)
        (release_dir / JOURNAL_FILE).unlink(missing_ok=True)


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
