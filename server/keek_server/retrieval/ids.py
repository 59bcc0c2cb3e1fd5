"""Video ids as mapped arrays: row to id and id to row, without a Python object an id."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

Rows = npt.NDArray[np.int64]

_PARTS = ("bytes", "offsets", "hashes", "rows")


def hash_id(id_: str) -> int:
    """64-bit hash of an id; 0 for the empty one."""
    return xxhash.xxh3_64_intdigest(id_.encode()) if id_ else 0


def hash_all(ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    """64-bit hashes of n ids: uint64 [n]."""
    return np.fromiter(map(hash_id, ids), np.uint64, count=len(ids))


class IdTable:
    """n ids, numbered by row.

    Look-ups go by binary search over the sorted hashes; the bytes of the id decide, so
    that a collision of hashes cannot give a wrong row.
    """

    def __init__(
        self,
        id_bytes: npt.NDArray[np.uint8],
        id_offsets: npt.NDArray[np.int64],
        id_hashes: npt.NDArray[np.uint64],
        id_rows: npt.NDArray[np.int64],
    ) -> None:
        """
        Args:
            id_bytes: UTF-8 of all ids, one behind the other.
            id_offsets: int64 [n + 1], where each starts.
            id_hashes: uint64 [n], sorted.
            id_rows: int64 [n], the row of each sorted hash.
        """
        # Plain views of the mapped arrays: reading one element of a memmap costs ten times more.
        self._bytes, self._offsets = np.asarray(id_bytes), np.asarray(id_offsets)
        self._hashes, self._rows = np.asarray(id_hashes), np.asarray(id_rows)
        self._view = self._bytes.data

    def __len__(self) -> int:
        return len(self._rows)

    @classmethod
    def build(cls, ids: Sequence[str]) -> "IdTable":
        """The table of `ids`, which must be distinct, in this order."""
        encoded = [id_.encode() for id_ in ids]
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=offsets[1:])
        hashes = hash_all(ids)
        order = np.argsort(hashes, kind="stable")
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets, hashes[order], order)

    def save(self, folder: Path, name: str = "id") -> None:
        """Writes the arrays into `folder`, in files that begin with `name`."""
        arrays: tuple[npt.NDArray[Any], ...] = (self._bytes, self._offsets, self._hashes, self._rows)
        for part, array in zip(_PARTS, arrays, strict=True):
            np.save(folder / f"{name}_{part}.npy", array)

    @classmethod
    def open(cls, folder: Path, name: str = "id") -> "IdTable":
        """Maps what `save` wrote; nothing is read yet."""
        return cls(*(np.load(folder / f"{name}_{part}.npy", mmap_mode="r") for part in _PARTS))

    def id_of(self, row: int) -> str:
        """The id of a row."""
        return str(self._view[self._offsets[row] : self._offsets[row + 1]], "utf-8")

    def ids_of(self, rows: Rows) -> list[str]:
        """The ids of many rows, int64 [n]: much faster than one by one."""
        starts, ends = self._offsets[rows].tolist(), self._offsets[rows + 1].tolist()
        view = self._view
        return [str(view[start:end], "utf-8") for start, end in zip(starts, ends, strict=True)]

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """The row of each id: int64 [n], -1 where the id is not in the table."""
        if not len(self):
            return np.full(len(ids), -1, np.int64)
        hashes = hash_all(ids)
        places = np.searchsorted(self._hashes, hashes)
        firsts = np.minimum(places, len(self) - 1)
        rows = np.where(self._hashes[firsts] == hashes, self._rows[firsts], -1)
        found = np.flatnonzero(rows >= 0)
        for at, id_ in zip(found.tolist(), self.ids_of(rows[found]), strict=True):
            if id_ != ids[at]:
                rows[at] = self._row_at(ids[at], hashes[at], places[at])
        return rows

    def rows_with(self, hashes: Collection[int]) -> Rows:
        """The rows whose ids have one of these hashes: int64 [found], in no order."""
        sought = np.fromiter(hashes, np.uint64, count=len(hashes))
        starts, ends = (np.searchsorted(self._hashes, sought, side) for side in ("left", "right"))
        parts = [self._rows[start:end] for start, end in zip(starts, ends, strict=True)]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def _row_at(self, id_: str, hash_: np.uint64, place: int) -> int:
        while place < len(self._hashes) and self._hashes[place] == hash_:
            row = int(self._rows[place])
            if self.id_of(row) == id_:
                return row
            place += 1
        return -1
