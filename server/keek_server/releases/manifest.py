"""The manifest: everything that makes up one release, as one JSON file and one SQL row."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from keek_server.errors import SetupError
from keek_server.retrieval.index import IndexReport
from keek_server.towers.contract import (
    CLIP_IMAGE,
    CLIP_TEXT,
    RANKER,
    USER_TOWER,
    VIDEO_TOWER,
    TowerContract,
)

MANIFEST_FILE = "manifest.json"


class TowerVersion(BaseModel):
    """One published version of a tower."""

    model_config = ConfigDict(frozen=True)

    version: int
    """The numeric folder in the model repository, and the version that Triton answers with."""
    sha256: str
    """Of model.onnx."""
    size_bytes: int


class ClipVersion(BaseModel):
    """The published CLIP of a release: both encoders, of one model."""

    model_config = ConfigDict(frozen=True)

    clip_model: str
    """Says which CLIP made a vector; `ClipRecord.clip_model`, at most 64 characters."""
    image: TowerVersion
    text: TowerVersion
    model: str
    """open-clip's name of the architecture."""
    pretrained: str | None
    """open-clip's tag of the weights, or the file that they came from; None when untrained."""
    untrained: bool
    """Whether the weights are random: its vectors say nothing about what a picture shows."""

    @property
    def models(self) -> dict[TowerContract, TowerVersion]:
        """The version of each encoder."""
        return {CLIP_IMAGE: self.image, CLIP_TEXT: self.text}


class GateResult(BaseModel):
    """What one gate measured of a model before it could serve."""

    model_config = ConfigDict(frozen=True)

    name: str
    """As in the settings, where `gate_<name>` is its bound; what has to be so whatever the settings, as
    `format` and `contract`, has a bound of its own. Each tower has a result."""
    value: float | None
    """None when nothing could be measured: no pass, unless there is nothing yet to compare with."""
    bound: float
    comparison: Literal["<=", ">="]
    """How `value` must stand to `bound`."""
    passed: bool
    detail: str
    """One line for people: what was measured, on what, and by how much it fails."""


class Candidate(BaseModel):
    """What is known of a release before it is built; all that there is of one that was refused at once."""

    model_config = ConfigDict(frozen=True)

    release_id: str
    create_time_us: int
    user_tower: TowerVersion
    video_tower: TowerVersion
    clip: ClipVersion | None = None
    ranker: TowerVersion | None = None
    """What orders the personalised candidates of a page, where a feed is to be ranked; a release need not
    have one."""
    history_length: int
    """How many of a user's latest interactions the user tower reads."""
    metrics: dict[str, Any]
    """What training and export measured: quality, parity, ms per user."""
    source: str = ""
    """What was published: a run's name, or the files that were brought."""
    gates: tuple[GateResult, ...] = ()
    """In the order they were measured; of a refused release, up to where it ended."""


class Manifest(Candidate):
    """{release id, tower versions, clip version, index, dimension, checksums, metrics}."""

    dimension: int
    catalogue_seq: int = 0
    """The last change of the catalogue that the index holds; later ones make up the fresh part."""
    log_seq: int = 0
    """The last row of the log when the users were embedded; who was active since gets a new vector."""
    index: IndexReport
    """By the vectors of the video tower."""
    clip_index: IndexReport | None = None
    """By clip vectors; none without CLIP, or when no video has a clip vector yet."""
    user_index: IndexReport | None = None
    """Over the vectors of the users that were active; none when nobody was."""
    files_sha256: dict[str, str]
    """Checksum of every file of the release, by name."""
    forced_reason: str = ""
    """Why it was published although a gate refused it; empty when none did."""

    @property
    def models(self) -> dict[TowerContract, TowerVersion]:
        """The version of each model that the release is made of."""
        models = {USER_TOWER: self.user_tower, VIDEO_TOWER: self.video_tower}
        if self.clip is not None:
            models |= self.clip.models
        if self.ranker is not None:
            models[RANKER] = self.ranker
        return models

    def save(self, folder: Path) -> None:
        """Writes the manifest into the release's folder."""
        (folder / MANIFEST_FILE).write_text(self.model_dump_json(indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads the manifest of the release in `folder`.

        Raises:
            SetupError: When there is none, or it cannot be read as one.
        """
        path = folder / MANIFEST_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise SetupError(f"no release in {folder}: {MANIFEST_FILE} is missing") from None
        except ValueError as error:
            raise SetupError(f"{path} is no manifest: {error}") from error
