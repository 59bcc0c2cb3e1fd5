"""The rows of one file on their way into a data set: checked column by column, all rows at once."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from keek_server.errors import SetupError
from keek_training.datasets.dataset import Problem
from keek_training.datasets.raw import RawTable

BoolArray = npt.NDArray[np.bool_]

_SHOWN_CHARACTERS = 60


class Rows:
    """Which rows are still good, and what is wrong with the others: the first fault found in each."""

    def __init__(self, raw: RawTable) -> None:
        self.file = raw.file
        self.count: int = raw.table.num_rows
        self.good: BoolArray = np.ones(self.count, np.bool_)
        self._raw = raw
        self._reasons: dict[int, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._raw.table.column_names

    def column(self, name: str) -> pa.Array:
        """The column as it was read; text, floats and dictionaries are never nested."""
        column = self._raw.table[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # what combining no chunks at all gives
            column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column

    def strings(self, name: str) -> pa.Array:
        """The column as strings, trimmed of white space; empty where there is no value.

        Raises:
            SetupError: When the file holds values there that have no obvious spelling.
        """
        column = self.column(name)
        if pa.types.is_floating(column.type):
            column = self._whole_numbers(name, column)
        try:
            text = column.cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SetupError(f"{self.file}: the column {name} is {column.type}, not text") from error
        return pc.utf8_trim_whitespace(pc.fill_null(text, ""))

    def cast(self, name: str, to: pa.DataType) -> pa.Array:
        """The column as another type, however much that loses.

        Raises:
            SetupError: When there is no way from its type to the other.
        """
        column = self.column(name)
        try:
            return column.cast(to, safe=False)
        except pa.ArrowException as error:
            raise SetupError(f"{self.file}: the column {name} is {column.type}, not {to}") from error

    def reject(self, bad: BoolArray, reason: str | Callable[[int], str]) -> None:
        """Marks rows as bad.

        Args:
            bad: bool [count].
            reason: What is wrong with them, or with the row of a given number.
        """
        for row in np.flatnonzero(bad & self.good).tolist():
            self._reasons[row] = reason if isinstance(reason, str) else reason(row)
        self.good &= ~bad

    def reject_values(self, bad: BoolArray, name: str, fault: str) -> None:
        """Marks rows as bad for their value in the column `name`, and shows the value."""
        if bad.any():
            column = self.column(name)
            self.reject(bad, lambda row: f"{name} {_shown(column[row].as_py())} {fault}")

    def line(self, row: int) -> int:
        """The line on which the row of this number began."""
        return int(self._raw.lines[row])

    def problems(self) -> list[Problem]:
        """Everything wrong with this file so far, in the order of its lines."""
        own = [Problem(self.file, self.line(row), reason) for row, reason in self._reasons.items()]
        return sorted([*self._raw.problems, *own], key=lambda problem: problem.line)

    def _whole_numbers(self, name: str, column: pa.Array) -> pa.Array:
        """Ids that became floats on their way through a program with no missing integers."""
        values = column.to_numpy(zero_copy_only=False).astype(np.float64)
        present = ~np.isnan(values)
        odd = present & ~((values == np.floor(values)) & (np.abs(values) < 2**53))
        self.reject_values(odd, name, "is not a whole number")
        kept = present & ~odd
        return pa.array(np.where(kept, values, 0).astype(np.int64), mask=~kept)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
