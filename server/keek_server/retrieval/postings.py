"""Rows by the values of a column, in mapped arrays: what few rows have is found without looking at all."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keek_server.retrieval.index import Rows

_PARTS = ("values", "rows")


class Postings:
    """The rows of each value but 0, which stands for none."""

    def __init__(self, values: npt.NDArray[Any], rows: npt.NDArray[np.int32]) -> None:
        """
        Args:
            values: [p], ascending.
            rows: int32 [p], a row that has the value beside it.
        """
        self._values, self._rows = values, rows

    @classmethod
    def build(cls, column: npt.NDArray[Any]) -> "Postings":
        """Of a column of n rows, [n] or [n, several], n below 2^31."""
        rows = np.flatnonzero(column) // (column[:1].size or 1)
        values = column[column != 0]
        order = np.argsort(values, kind="stable")
        return cls(values[order], rows[order].astype(np.int32))

    def save(self, folder: Path, name: str) -> None:
        """Writes the arrays into `folder`, in files that begin with `name`."""
        for part, array in zip(_PARTS, (self._values, self._rows), strict=True):
            np.save(folder / f"{name}_{part}.npy", array)

    @classmethod
    def open(cls, folder: Path, name: str) -> "Postings | None":
        """Maps what `save` wrote; None where it wrote nothing, as in releases of before."""
        if not (folder / f"{name}_{_PARTS[0]}.npy").exists():
            return None
        return cls(*(np.asarray(np.load(folder / f"{name}_{part}.npy", mmap_mode="r")) for part in _PARTS))

    def rows_with(self, values: Sequence[Any] | npt.NDArray[Any]) -> Rows:
        """The rows that have one of these values: int64 [found], ascending, each once."""
        sought = np.asarray(values, self._values.dtype)
        starts, ends = (np.searchsorted(self._values, sought, side) for side in ("left", "right"))
        parts = [self._rows[start:end] for start, end in zip(starts, ends, strict=True)]
        if len(parts) == 1:
            return parts[0].astype(np.int64)
        return np.unique(np.concatenate([np.empty(0, np.int32), *parts])).astype(np.int64)


Among = Callable[[Mapping[str, Postings]], Rows | None]
"""Gives rows, of which those are some that may be found; None where nothing says which."""
