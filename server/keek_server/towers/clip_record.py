"""What the server has to know about the CLIP of a release; it lies beside the release as JSON."""

from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from keek_server.errors import SetupError
from keek_server.videos.decoding.types import FrameShape, Interpolation, ResizeMode

CLIP_FILE: Final = "clip.json"
TOKENIZER_FILE: Final = "tokenizer.json"
CLIP_FILES: Final = (CLIP_FILE, TOKENIZER_FILE)
"""What a release with CLIP holds of it, beside what it is in Triton."""

Channels = tuple[float, float, float]


class ClipRecord(BaseModel):
    """How to prepare pictures and texts for one CLIP, as open-clip does it, and where it comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clip_model: Annotated[str, Field(min_length=1, max_length=64)]
    """Says which CLIP made a vector; vectors of two CLIPs cannot be compared."""
    model: str
    """open-clip's name of the architecture."""
    pretrained: str | None
    """open-clip's tag of the weights, or the file that they came from; None when untrained."""
    untrained: bool
    """Whether the weights are random: its vectors say nothing about what a picture shows."""
    image_size: Annotated[int, Field(ge=1)]
    """Pixels, of both sides."""
    resize_mode: ResizeMode
    interpolation: Interpolation
    mean: Channels
    """Of red, green and blue, between 0 and 1. Subtracted inside the model, as `std` is applied there."""
    std: Channels
    context_length: Annotated[int, Field(ge=3)]
    """The most tokens of a text, start and end included."""
    start_token: int
    end_token: int
    pad_token: int
    dynamic_length: bool
    """Whether a text may be given without its padding, which saves its time; otherwise all are padded
    to `context_length`."""

    @property
    def frame_shape(self) -> FrameShape:
        """What pictures have to be made into."""
        return FrameShape(self.image_size, self.resize_mode, self.interpolation)

    def save(self, folder: Path) -> None:
        """Writes the record into `folder`."""
        (folder / CLIP_FILE).write_text(self.model_dump_json(indent=2) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> "ClipRecord":
        """Reads the record in `folder`.

        Raises:
            SetupError: When there is none, or it cannot be read as one.
        """
        path = folder / CLIP_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise SetupError(f"no CLIP in {folder}: {error}") from error
        except ValueError as error:
            raise SetupError(f"{path} does not describe a CLIP: {error}") from error
