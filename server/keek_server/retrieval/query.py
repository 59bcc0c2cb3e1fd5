"""What a living index is asked, and what it answers."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from keek_server.retrieval.fresh import VECTORS, Allowed, FreshHits
from keek_server.retrieval.ids import IdTable, hash_id
from keek_server.retrieval.index import Mask, Rows
from keek_server.retrieval.postings import Among

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Excluded:
    """Ids that a search must not find: few of all, but maybe the nearest, as what a user has seen."""

    ids: AbstractSet[str] = frozenset()
    hashes: AbstractSet[int] = frozenset()
    """The same, by `hash_id`."""

    def __len__(self) -> int:
        """The most rows that it can keep from being found."""
        return len(self.ids) + len(self.hashes)

    def keeps(self, ids: Sequence[str]) -> Mask:
        """Which of n ids may be found: bool [n]."""
        hashes = self.hashes
        return np.fromiter(
            (id_ not in self.ids and not (hashes and hash_id(id_) in hashes) for id_ in ids),
            np.bool_,
            count=len(ids),
        )

    def rows(self, table: IdTable) -> Rows:
        """The rows of those that a table has: int64 [at most len(self)]."""
        by_id = table.rows_of(list(self.ids))
        return np.concatenate([by_id[by_id >= 0], table.rows_with(self.hashes)])


@dataclass(frozen=True, slots=True)
class Query:
    """One search."""

    vector: Float32Array
    """float32 [dimension]."""
    k: int
    """Rows wanted; at least 1."""
    allowed: Allowed | None = None
    """Which rows may be found, by their columns; all that live by default."""
    by: str = VECTORS
    """The column of vectors that is searched."""
    excluded: Excluded = field(default_factory=Excluded)
    """Which rows may not, by their ids."""
    among: Among | None = None
    """Where the allowed rows of the main part are, if that can be looked up."""

    def __post_init__(self) -> None:
        if self.k < 1:
            # Here, where it fails alone: within a search it would fail all queries of its batch.
            raise ValueError(f"k must be at least 1, not {self.k}")


@dataclass(frozen=True, slots=True)
class Hits:
    """What one search found, best first. They stay readable, whatever changes since."""

    scores: Float32Array
    """float32 [found]."""
    rows: Rows
    """int64 [found]: in the main part, and behind it in the fresh part."""
    ids: IdTable
    fresh: FreshHits

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def _all_in_main(self) -> bool:
        """Mostly so: then all are looked up at once."""
        return not len(self.rows) or int(self.rows.max()) < len(self.ids)

    def found_ids(self) -> list[str]:
        """The ids, [found]."""
        count = len(self.ids)
        if self._all_in_main:
            return self.ids.ids_of(self.rows)
        return [
            self.ids.id_of(row) if row < count else self.fresh.id_of(row - count)
            for row in self.rows.tolist()
        ]

    def values(self, main: npt.NDArray[Any], column: str) -> list[Any]:
        """One column of each, [found]; `main` is that column of the main part."""
        if self._all_in_main:
            found: list[Any] = np.asarray(main[self.rows]).tolist()
            return found
        count = len(self.ids)
        return [
            main[row].item() if row < count else self.fresh.value_of(row - count, column).item()
            for row in self.rows.tolist()
        ]
