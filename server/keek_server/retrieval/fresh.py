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
"""Which rows may be found. Each row is judged by itself: it is asked about any part of them."""

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
    living: int = 0


class FreshPart:
    """Rows that come and go while they are searched: one writer, readers in any thread.

    A row is never changed: one that is replaced or removed is marked dead. When more rows live than the
    limit, the oldest block of rows goes.
    """

    def __init__(self, columns: Mapping[str, Column], *, limit: int) -> None:
        """
        Args:
            columns: What is kept of a row, `vectors` among them: float32 [dimension].
            limit: Rows kept, rounded up to whole blocks.
        """
        self._columns = columns
        self._limit = limit
        # Beyond this, at least one block is mostly dead rows.
        self._most_blocks = 2 * -(-limit // _BLOCK_ROWS) + 2
        self._blocks: tuple[_Block, ...] = ()
        self._places: dict[str, tuple[_Block, int]] = {}

    def __len__(self) -> int:
        """Rows that can be found."""
        return len(self._places)

    def __contains__(self, id_: str) -> bool:
        return id_ in self._places

    def put(self, ids: Sequence[str], columns: Columns) -> list[str]:
        """Adds rows; one of an id that is there, or stands before it, takes its place.

        Returns:
            The ids of rows that had to go for them.
        """
        gone: list[str] = []
        start = 0
        while start < len(ids):
            if not self._blocks or self._blocks[-1].count == _BLOCK_ROWS:
                gone += self._make_room()
            start = self._fill(ids, columns, start)
        return gone

    def remove(self, id_: str) -> None:
        """Nothing happens where there is no such row."""
        if (found := self._places.pop(id_, None)) is not None:
            _kill(*found)

    def _fill(self, ids: Sequence[str], columns: Columns, start: int) -> int:
        """Adds the rows from `start` on that fit into the last block; gives where to go on."""
        block = self._blocks[-1]
        place = block.count
        end = min(len(ids), start + _BLOCK_ROWS - place)
        behind = place + end - start
        for name, array in block.arrays.items():
            array[place:behind] = columns[name][start:end]
        block.ids += ids[start:end]
        block.alive[place:behind] = True
        block.living += end - start
        block.count = behind
        # After the new rows can be found: whoever searches meanwhile finds one of both, or both.
        for offset, id_ in enumerate(ids[start:end]):
            if (old := self._places.get(id_)) is not None:
                _kill(*old)
            self._places[id_] = block, place + offset
        return end

    def _make_room(self) -> list[str]:
        """Opens a block; gives the ids that have gone with old ones."""
        gone: list[str] = []
        kept = [block for block in self._blocks if block.living]
        while len(self._places) > self._limit and kept:
            gone += self._forget(kept.pop(0))
        arrays = {
            name: np.zeros((_BLOCK_ROWS, *column.shape), column.dtype)
            for name, column in self._columns.items()
        }
        self._blocks = (*kept, _Block([], np.zeros(_BLOCK_ROWS, np.bool_), arrays))
        if len(self._blocks) > self._most_blocks:
            self._move(min(kept, key=lambda block: block.living))
        return gone

    def _forget(self, block: _Block) -> list[str]:
        ids = [block.ids[place] for place in np.flatnonzero(block.alive[: block.count]).tolist()]
        for id_ in ids:
            del self._places[id_]
        return ids

    def _move(self, block: _Block) -> None:
        """Moves the living rows of a block into the one that was just opened, which has room for all."""
        rows = np.flatnonzero(block.alive[: block.count])
        columns = {name: array[rows] for name, array in block.arrays.items()}
        self._fill([block.ids[place] for place in rows.tolist()], columns, 0)
        self._blocks = tuple(other for other in self._blocks if other is not block)

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


@dataclass(frozen=True, slots=True)
class FreshHits:
    """What a search found, with the rows as they were: they stay readable, whatever is added since."""

    scores: Scores
    """float32 [n, found], in no order; -inf where a row must not be found."""
    rows: Rows
    """int64 [n, found]."""
    blocks: tuple[_Block, ...]

    def best(self, query: int, least: float, keeps: Callable[[Sequence[str]], Mask]) -> tuple[Scores, Rows]:
        """What one query found, [found] each: rows with that score at least, whose ids may be found."""
        own = np.isfinite(self.scores[query]) & (self.scores[query] >= least)
        rows = self.rows[query][own]
        kept = keeps([self.id_of(row) for row in rows.tolist()])
        return self.scores[query][own][kept], rows[kept]

    def id_of(self, row: int) -> str:
        """The id of a row."""
        return self.blocks[row // _BLOCK_ROWS].ids[row % _BLOCK_ROWS]

    def value_of(self, row: int, column: str) -> Any:
        """One value of a row."""
        return self.blocks[row // _BLOCK_ROWS].arrays[column][row % _BLOCK_ROWS]


def _kill(block: _Block, place: int) -> None:
    block.alive[place] = False
    block.living -= 1


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
    scores[~np.isfinite(scores)] = -np.inf
    scores[:, ~mask] = -np.inf
    if count > k:
        rows = np.argpartition(scores, count - k, axis=1)[:, count - k :]
        return np.take_along_axis(scores, rows, axis=1), rows
    return scores, np.broadcast_to(np.arange(count), scores.shape)
