"""Where the hourly job stands: one small file, replaced as a whole after every step."""

import logging
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from keek_server.files import written_aside
from keek_server.settings import Settings

logger = logging.getLogger(__name__)

STATE_FILE: Final = "state.json"


class Step(StrEnum):
    """What a round does next, in this order."""

    TRAIN = "train"
    EXPORT = "export"
    RANK = "rank"
    PUBLISH = "publish"
    FEEDS = "feeds"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LogRange(_Model):
    """Rows of one log: those behind `after_seq`, up to `last_seq`."""

    log_id: str
    after_seq: int
    last_seq: int


class Round(_Model):
    """One way from the log to a release."""

    run: str
    """The run that it makes; no other round has made one of this name."""
    base: str | None
    """The run that it fine-tunes; None for a full training."""
    new: LogRange
    """What is new to the base."""
    replaces: str = ""
    """Where the catalogue alone is new: the latest release of `run`, which is published again with a new
    index. Empty where a new run is trained."""
    catalogue_seq: int = 0
    """The latest change of the catalogue then."""
    step: Step = Step.TRAIN
    tries: int = 0
    """How often `step` was begun."""
    release_id: str = ""
    """What it published; empty before."""


class Refusal(_Model):
    """A run that did not become a release."""

    run: str
    reason: str
    log_id: str
    last_seq: int
    """It had read the log up to here: the same again would be refused again."""
    catalogue_seq: int = 0
    """The same of the catalogue, where that alone was new to an index that was refused; 0 for none."""


class State(_Model):
    """What is kept between rounds."""

    round: Round | None = None
    """Under way; None between rounds."""
    refusal: Refusal | None = None
    """Since the last release of a new run."""

    @classmethod
    def load(cls, folder: Path) -> "State":
        """The state in a folder. What cannot be read is logged and begun anew: no release depends on it."""
        path = folder / STATE_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return cls()
        except ValidationError as error:
            logger.warning("%s cannot be read, so the hourly job begins anew: %s", path, error)
            return cls()

    def save(self, folder: Path) -> None:
        """Replaces it; a crash leaves the one before."""
        path = folder / STATE_FILE
        with written_aside(path, path.with_suffix(".tmp")) as file:
            file.write(self.model_dump_json(indent=2).encode() + b"\n")


def hourly_dir(settings: Settings) -> Path:
    """Holds the state and the lock."""
    return settings.data_dir / "hourly"
