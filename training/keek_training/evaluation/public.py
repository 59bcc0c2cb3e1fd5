"""The folder of a public data set, recognised by its files: the part that is trained on, or all of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from keek_server.errors import SetupError
from keek_training.datasets import kuairand, movielens, tiktok
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.kuairand_sequences import SEQUENCES
from keek_training.evaluation.protocols import PROTOCOLS, Protocol

TRAINING: Final = "training"
ALL: Final = "all"
FITS: Final = (TRAINING, ALL)
"""What of a folder is fitted: the training part of its protocol's split, or everything that it holds."""


@dataclass(frozen=True, slots=True)
class PublicData:
    """One data set in a folder."""

    name: str
    """As in PROTOCOLS."""
    folder: Path
    _everything: Callable[[Path], Dataset]

    def protocol(self) -> Protocol:
        """How it is measured."""
        return PROTOCOLS[self.name](self.folder)

    def read(self, fit: str) -> Dataset:
        """What is fitted: TRAINING or ALL.

        All of kuairand-pure are the impressions of the validation period, too, behind the sequences and with
        their exact times and kinds; of tiktok `trn` and `val`; of ml-1m every row.

        Raises:
            SetupError: When a file is missing or of another layout.
        """
        return self.protocol().split.training if fit == TRAINING else self._everything(self.folder)


_FILES: Final[dict[str, tuple[str, Callable[[Path], Dataset]]]] = {
    "kuairand-pure": (SEQUENCES, lambda folder: kuairand.read(folder, "all")),
    "tiktok": (tiktok.FILE, lambda folder: tiktok.read(folder, "all")),
    "ml-1m": ("movies.dat", movielens.read),
}
"""The file that tells a data set from the others, and how all of it is read."""


def recognise(folder: Path) -> PublicData:
    """The data set in a folder.

    Raises:
        SetupError: When it is none of those that there is a protocol for.
    """
    for name, (file, everything) in _FILES.items():
        if (folder / file).is_file():
            return PublicData(name, folder, everything)
    known = ", ".join(f"{file} ({name})" for name, (file, _) in _FILES.items())
    raise SetupError(f"{folder} holds none of {known}: name the format, as FORMAT:{folder}")
