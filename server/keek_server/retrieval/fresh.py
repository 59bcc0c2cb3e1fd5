"""The fresh part of an index: what was added since it was built, small and searched exactly."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keek_server.retrieval.index import Mask, Rows, Scores, Vectors

Columns = Mapping[str, npt.NDArray[Any]]
"""Arrays by name, a row a video (or user), as a filter reads them."""

Allowed = Callable[[Columns], Mask]
"""Which rows may be found."""

VECTORS = "vectors"

_BLOCK_ROWS = 4096


class Column(NamedTuple):
    """What a column holds of one row."""

    dtype: npt.DTypeLike
    shape: tuple[int, ...] = ()


@dataclass(slots=True)
class _Block:
    """A fixed number of rows, filled one after the other: nothing that a reader sees ever moves."""

    ids: list[str]
    alive: Mask
    arrays: dict[str, npt.NDArray[Any]]
    count: int = 0
    """Set last, when a row is complete."""


class FreshPart:
    """Rows that come and go while they are searched: one writer, readers in any thread.

    A row is never changed: one that is replaced or removed is marked dead. When the limit is passed, the
    oldest block of rows goes.
    """

    def __init__(self, columns: Mapping[str, Column], *, limit: int) -> None:
        """
        Args:
            columns: What is kept of a row, `vectors` among them: float32 [dimension].
            limit: Rows kept, rounded up to whole blocks.
        """
        self._columns = columns
        self._most_blocks = -(-limit // _BLOCK_ROWS) + 1
        self._blocks: tuple[_Block, ...] = ()
        self._places: dict[str, tuple[_Block, int]] = {}

    def __len__(self) -> int:
        """Rows that can be found."""
        return len(self._places)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._places

    def put(self, ids: Sequence[str], columns: Columns) -> None:
        """Adds rows; one of an id that is there takes its place."""
        for row, id_ in enumerate(ids):
            self.remove(id_)
            block = self._open_block()
            place = block.count
            for name, array in block.arrays.items():
                array[place] = columns[name][row]
            block.ids.append(id_)
            block.alive[place] = True
            block.count = place + 1
            self._places[id_] = block, place

    def remove(self, id_: str) -> None:
        """Nothing happens where there is no such row."""
        if (found := self._places.pop(id_, None)) is not None:
            block, place = found
            block.alive[place] = False

    def get(self, id_: str, column: str) -> npt.NDArray[Any] | None:
        """One value of one row; None where there is no such row."""
        found = self._places.get(id_)
        return None if found is None else found[0].arrays[column][found[1]]

    def search(
        self, queries: npt.NDArray[np.float32], k: int, allowed: Allowed | None = None, by: str = VECTORS
    ) -> "FreshHits":
        """The rows with the largest dot products.

        Args:
            queries: float32 [n, dimension of the column `by`].
            k: Rows wanted a query.
            allowed: Which rows may be found; all by default.
            by: The column of vectors that is searched.
        """
        blocks = self._blocks
        scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for number, block in enumerate(blocks):
            found = _search_block(block, queries, k, allowed, by)
            scores = np.concatenate([scores, found[0]], axis=1)
            rows = np.concatenate([rows, found[1] + number * _BLOCK_ROWS], axis=1)
        return FreshHits(scores, rows, blocks)

    def _open_block(self) -> _Block:
        if not self._blocks or self._blocks[-1].count == _BLOCK_ROWS:
            arrays = {
                name: np.zeros((_BLOCK_ROWS, *column.shape), column.dtype)
                for name, column in self._columns.items()
            }
            self._blocks = (*self._blocks, _Block([], np.zeros(_BLOCK_ROWS, np.bool_), arrays))
            if len(self._blocks) > self._most_blocks:
                for id_ in self._blocks[0].ids:
                    if self._places.get(id_, (None,))[0] is self._blocks[0]:
                        del self._places[id_]
                self._blocks = self._blocks[1:]
        return self._blocks[-1]


@dataclass(frozen=True, slots=True)
class FreshHits:
    """What a search found, with the rows as they were: they stay readable, whatever is added since."""

    scores: Scores
    """float32 [n, found], in no order; -inf where a row must not be found."""
    rows: Rows
    """int64 [n, found]."""
    blocks: tuple[_Block, ...]

    def id_of(self, row: int) -> str:
        """The id of a row."""
        return self.blocks[row // _BLOCK_ROWS].ids[row % _BLOCK_ROWS]

    def value_of(self, row: int, column: str) -> Any:
        """One value of a row."""
        return self.blocks[row // _BLOCK_ROWS].arrays[column][row % _BLOCK_ROWS]


def _search_block(
    block: _Block, queries: Vectors, k: int, allowed: Allowed | None, by: str
) -> tuple[Scores, Rows]:
    count = block.count
    columns = {name: array[:count] for name, array in block.arrays.items()}
    mask = block.alive[:count]
    if allowed is not None:
        mask = mask & allowed(columns)
    scores: Scores = queries @ columns[by].astype(np.float32, copy=False).T
    # A row without a vector, as of a video that no CLIP saw, is NaN throughout and sinks.
    scores[:, ~mask | np.isnan(scores).any(axis=0)] = -np.inf
    if count > k:
        rows = np.argpartition(scores, count - k, axis=1)[:, count - k :]
        return np.take_along_axis(scores, rows, axis=1), rows
    return scores, np.broadcast_to(np.arange(count), scores.shape)
