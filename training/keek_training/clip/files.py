"""An exported CLIP: the folder that the export writes and publishing reads."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keek_server.errors import SetupError
from keek_server.files import sync
from keek_server.settings import Settings
from keek_server.towers.clip_record import ClipRecord
from keek_server.towers.contract import TowerContract

DEFAULT_NAME = "latest"
_REPORT = "export.json"


@dataclass(frozen=True, slots=True)
class ClipExport:
    """The files of one exported CLIP; the folder has its name only when they are complete."""

    folder: Path

    @classmethod
    def named(cls, name: str, settings: Settings) -> "ClipExport":
        """The export of this name below the data directory; it need not exist yet.

        Raises:
            SetupError: When the name is no folder name.
        """
        if not name or name != Path(name).name or name in (".", ".."):
            raise SetupError(f"{name!r} cannot name an exported CLIP: it must be a plain folder name")
        return cls(settings.data_dir / "clip" / name)

    def model(self, encoder: TowerContract) -> Path:
        """The ONNX file of CLIP_IMAGE or CLIP_TEXT."""
        return self.folder / f"{encoder.model}.onnx"

    @property
    def exists(self) -> bool:
        """Whether there is a complete export."""
        return (self.folder / _REPORT).is_file()

    def record(self) -> ClipRecord:
        """How to use it.

        Raises:
            SetupError: When nothing is exported under this name.
        """
        if not self.exists:
            raise SetupError(
                f"no CLIP is exported in {self.folder}: keek-train export-clip --name {self.folder.name}"
            )
        return ClipRecord.load(self.folder)

    def write_report(self, report: dict[str, Any]) -> None:
        """Writes what the export measured."""
        (self.folder / _REPORT).write_text(json.dumps(report, indent=2) + "\n", "utf-8")

    @contextmanager
    def writing(self) -> Iterator["ClipExport"]:
        """A folder to write to, which takes this one's place when the block ends without an error."""
        aside = self.folder.with_name(f"{self.folder.name}.tmp")
        replaced = self.folder.with_name(f"{self.folder.name}.old")
        for left_over in (aside, replaced):
            shutil.rmtree(left_over, ignore_errors=True)
        aside.mkdir(parents=True)
        try:
            yield ClipExport(aside)
            for path in (*aside.iterdir(), aside):
                sync(path)
            if self.folder.exists():
                self.folder.rename(replaced)
            aside.rename(self.folder)
            sync(self.folder.parent)
        finally:
            for left_over in (aside, replaced):
                shutil.rmtree(left_over, ignore_errors=True)
