"""What is published: two towers, from a run of our own or as files that an engineer brings."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from keek_server.errors import SetupError
from keek_server.towers.contract import RANKER, TOWERS, VIDEO_TOWER, TowerContract
from keek_training.runs import Run

logger = logging.getLogger(__name__)

DEFAULT_HISTORY_LENGTH: Final = 50
_LONGEST_HISTORY: Final = 200


@dataclass(frozen=True, slots=True)
class TowerSource:
    """Two ONNX files, or three with a ranker, that become a release."""

    name: str
    """A run's name, or the names of the files."""
    user_tower: Path
    video_tower: Path
    history_length: int
    """Interactions that the user tower reads, the newest of a history."""
    metrics: dict[str, Any]
    """What training and export measured; empty for files that were brought."""
    golden: Path | None
    """Golden inputs with the answers of what was exported; None when nobody but the files can tell."""
    ranker: Path | None = None
    """What orders pages by these towers' vectors; None for a release without a ranker."""
    ranker_golden: Path | None = None
    """As `golden`, of the ranker."""

    @property
    def models(self) -> tuple[TowerContract, ...]:
        """What there is a file of."""
        return TOWERS if self.ranker is None else (*TOWERS, RANKER)

    def path(self, tower: TowerContract) -> Path:
        """The file of one tower, or of the ranker that there is."""
        if tower == RANKER:
            assert self.ranker is not None
            return self.ranker
        return self.video_tower if tower == VIDEO_TOWER else self.user_tower

    def golden_of(self, tower: TowerContract) -> Path | None:
        """Its golden inputs and answers."""
        return self.ranker_golden if tower == RANKER else self.golden

    @classmethod
    def of_run(cls, run: Run) -> "TowerSource":
        """What a run exported, and its ranker, where it has one that may serve.

        Raises:
            SetupError: When it is not trained, or not exported.
        """
        export = run.read_export()
        metrics = {"training": run.read_metrics(), "export": export}
        golden = run.golden if run.golden.is_file() else None
        length = _checked_length(int(export["history_length"]))
        source = cls(run.name, run.user_tower, run.video_tower, length, metrics, golden)
        report = run.read_ranker()
        if report is None:
            return source
        metrics["ranker"] = report
        if report["refused"]:
            logger.warning("run %s is published without its ranker: %s", run.name, report["refused"])
            return source
        return replace(source, ranker=run.ranker, ranker_golden=run.ranker_golden)

    @classmethod
    def of_files(
        cls, user_tower: Path, video_tower: Path, history_length: int = DEFAULT_HISTORY_LENGTH
    ) -> "TowerSource":
        """Any pair of ONNX files; nothing is read of them yet.

        Raises:
            SetupError: When a file is not there, or the length is none that a history can have.
        """
        for path in (user_tower, video_tower):
            if not path.exists():
                raise SetupError(f"{path} does not exist")
        name = f"{user_tower.name} and {video_tower.name}"
        return cls(name, user_tower, video_tower, _checked_length(history_length), {}, None)


def _checked_length(length: int) -> int:
    if not 1 <= length <= _LONGEST_HISTORY:
        raise SetupError(f"a history length of {length} does not fit: 1 to {_LONGEST_HISTORY} interactions")
    return length
