"""What a file holds before anything is believed: columns, and the line each row began on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from keek_server.errors import SetupError
from keek_training.datasets.dataset import Problem

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RawTable:
    """The wanted columns of one file; strings where the file is text."""

    file: Path
    table: pa.Table
    lines: Int64Array
    """int64 [rows]: the 1-based line on which each row began; for Parquet, its row."""
    problems: list[Problem] = field(default_factory=list)
    """Lines that are no rows at all."""


def read_bytes(path: Path) -> bytes:
    """The whole file, without the byte-order mark that some programs put before UTF-8.

    Raises:
        SetupError: When there is no such file or it cannot be read.
    """
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error


def choose_columns(
    path: Path, present: Sequence[str], required: Sequence[str], optional: Sequence[str]
) -> dict[str, int]:
    """Positions of the wanted columns in `present`, by name.

    Raises:
        SetupError: When a required column is absent, or a wanted one occurs twice.
    """
    missing = [name for name in required if name not in present]
    if missing:
        raise SetupError(
            f"{path} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"it has {', '.join(present) or 'no columns'}"
        )
    wanted = [name for name in (*required, *optional) if name in present]
    twice = [name for name in wanted if present.count(name) > 1]
    if twice:
        raise SetupError(f"{path} has the column {twice[0]} twice")
    return {name: present.index(name) for name in wanted}
