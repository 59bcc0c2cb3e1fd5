"""A run: the folder that training writes, export completes and publishing reads."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keek_server.errors import SetupError
from keek_server.settings import Settings

_CONFIG, _METRICS, _HISTORY, _EXPORT = "config.json", "metrics.json", "history.json", "export.json"
_RANKER = "ranker.json"


@dataclass(frozen=True, slots=True)
class Run:
    """The files of one run. Each appears under its name only when it is complete."""

    folder: Path

    @classmethod
    def named(cls, name: str, settings: Settings) -> "Run":
        """The run of this name below the data directory; it need not exist yet.

        Raises:
            SetupError: When the name is no folder name.
        """
        if not name or name != Path(name).name:
            raise SetupError(f"{name!r} cannot name a run: it must be a plain folder name")
        return cls(settings.data_dir / "runs" / name)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def user_tower(self) -> Path:
        """The exported user tower."""
        return self.folder / "user_tower.onnx"

    @property
    def video_tower(self) -> Path:
        """The exported video tower."""
        return self.folder / "video_tower.onnx"

    @property
    def golden(self) -> Path:
        """Golden inputs and what Keras answered, as one .npz."""
        return self.folder / "golden.npz"

    @property
    def ranker(self) -> Path:
        """The exported ranker of pages by these towers' vectors."""
        return self.folder / "ranker.onnx"

    @property
    def ranker_golden(self) -> Path:
        """The same for the ranker as `golden`."""
        return self.folder / "ranker_golden.npz"

    @property
    def curves(self) -> Path:
        """The learning curves."""
        return self.folder / "learning_curves.png"

    @property
    def checkpoint(self) -> Path:
        """What an unfinished training goes on from; a complete one leaves none."""
        return self.folder / "checkpoint.npz"

    def weights(self, tower: str) -> Path:
        """Weights of one tower, in Keras' own format."""
        return self.folder / f"{tower}.weights.npz"

    @property
    def config(self) -> Path:
        """The training configuration, as JSON."""
        return self.folder / _CONFIG

    @property
    def is_trained(self) -> bool:
        """Whether training came to its end."""
        return (self.folder / _METRICS).is_file()

    @property
    def is_exported(self) -> bool:
        """Whether its export came to its end."""
        return (self.folder / _EXPORT).is_file()

    def read_metrics(self) -> dict[str, Any]:
        """What training measured."""
        return self._read(_METRICS, "is not trained: keek-train train --run")

    def read_export(self) -> dict[str, Any]:
        """What export measured: parity, checksums, ms per user."""
        return self._read(_EXPORT, "is not exported: keek-train export --run")

    def write_metrics(self, metrics: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """Writes what training measured, at its end and by epoch."""
        self._write(_HISTORY, history)
        self._write(_METRICS, metrics)

    def write_export(self, report: dict[str, Any]) -> None:
        """Writes what export measured; it is the last file that an export writes."""
        self._write(_EXPORT, report)

    def read_ranker(self) -> dict[str, Any] | None:
        """What was measured of its ranker; None where it was given none."""
        return self._read(_RANKER, "") if (self.folder / _RANKER).is_file() else None

    def write_ranker(self, report: dict[str, Any]) -> None:
        """Writes what was measured of its ranker; it is the last file of one."""
        self._write(_RANKER, report)

    def forget_ranker(self) -> None:
        """From here on it has none, until one is written."""
        (self.folder / _RANKER).unlink(missing_ok=True)

    def start(self) -> None:
        """Makes the folder anew: what an earlier run of this name left is gone, but for a checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != self.checkpoint:
                entry.unlink()

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """A path to write to, renamed to `path` when the block ends without an error."""
        aside = path.with_name(f"{path.stem}.tmp{path.suffix}")
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(path)

    def _read(self, name: str, hint: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.folder / name).read_text("utf-8"))
        except FileNotFoundError:
            raise SetupError(f"run {self.name!r} {hint} {self.name}") from None
        return content

    def _write(self, name: str, content: Any) -> None:
        with self.writing(self.folder / name) as aside:
            aside.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
