"""An index that lives: the main part as it was built, and what changed since, searched as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keek_server.retrieval.fresh import VECTORS, Allowed, Column, Columns, FreshHits, FreshPart
from keek_server.retrieval.ids import IdTable
from keek_server.retrieval.index import Index, Mask, Rows, Scores, Vectors

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Query:
    """One search."""

    vector: Float32Array
    """float32 [dimension]."""
    k: int
    allowed: Allowed | None = None
    """Which rows may be found; all that live by default."""
    by: str = VECTORS
    """The column of vectors that is searched."""


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

    def found_ids(self) -> list[str]:
        """The ids, [found]."""
        count = len(self.ids)
        return [
            self.ids.id_of(row) if row < count else self.fresh.id_of(row - count)
            for row in self.rows.tolist()
        ]

    def values(self, main: npt.NDArray[Any], column: str) -> list[Any]:
        """One column of each, [found]; `main` is that column of the main part."""
        count = len(self.ids)
        return [
            main[row].item() if row < count else self.fresh.value_of(row - count, column).item()
            for row in self.rows.tolist()
        ]


class LiveIndex:
    """A main index, its tombstones and its fresh part. One writer; searches in any thread.

    What is searched is never changed: tombstones are a mask, and fresh rows are added behind.
    """

    def __init__(
        self,
        indexes: Mapping[str, Index],
        ids: IdTable,
        columns: Columns,
        *,
        fresh_columns: Mapping[str, Column],
        fresh_limit: int,
    ) -> None:
        """
        Args:
            indexes: The main part: an index for each column of vectors that is searched.
            ids: Of its n rows.
            columns: Of the n rows: `vectors`, and what filters read.
            fresh_columns: The same columns, as the fresh part keeps them.
            fresh_limit: See `FreshPart`.
        """
        self._indexes = indexes
        self.ids = ids
        self.columns = columns
        self.fresh = FreshPart(fresh_columns, limit=fresh_limit)
        self._dead = np.zeros(len(ids), np.bool_)
        self._dead_count = 0

    def put(self, ids: Sequence[str], columns: Columns) -> None:
        """Adds rows, or replaces those of the same ids."""
        # Rows that leave the fresh part leave the main part's own row, if there is one, as it was built.
        self._set_dead(self.fresh.put(ids, columns), dead=False)
        self._set_dead(ids, dead=True)

    def remove(self, ids: Sequence[str]) -> None:
        """Removes rows; ids that have none are passed over."""
        for id_ in ids:
            self.fresh.remove(id_)
        self._set_dead(ids, dead=True)

    def value(self, id_: str, column: str) -> npt.NDArray[Any] | None:
        """One value of a row that lives; None where there is none."""
        if (fresh := self.fresh.get(id_, column)) is not None:
            return fresh
        row = int(self.ids.rows_of([id_])[0])
        return None if row < 0 or self._dead[row] else np.asarray(self.columns[column][row])

    def vectors_of(self, ids: Sequence[str]) -> tuple[Mask, Vectors]:
        """Vectors by id, also of rows that are removed: somebody may have liked one.

        Returns:
            Which of the n ids are known, bool [n], and the vectors of those, float32 [known, dimension].
        """
        rows = self.ids.rows_of(ids)
        fresh = {place: self.fresh.get(id_, VECTORS) for place, id_ in enumerate(ids) if id_ in self.fresh}
        if not fresh:
            known = rows >= 0
            return known, np.asarray(self.columns[VECTORS][rows[known]])
        vectors = np.asarray(self.columns[VECTORS][np.maximum(rows, 0)])
        known = rows >= 0
        for place, vector in fresh.items():
            known[place] = True
            vectors[place] = vector
        return known, vectors[known]

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """The rows with the largest dot products, for each query."""
        hits: dict[int, Hits] = {}
        together: dict[str, list[int]] = {}
        for place, query in enumerate(queries):
            if query.allowed is None:
                together.setdefault(query.by, []).append(place)
            else:
                (hits[place],) = self._search_alike([query])
        for places in together.values():
            found = self._search_alike([queries[place] for place in places])
            hits.update(zip(places, found, strict=True))
        return [hits[place] for place in range(len(queries))]

    def _search_alike(self, queries: Sequence[Query]) -> list[Hits]:
        """Searches one column for several queries, all with the first one's filter."""
        by, allowed = queries[0].by, queries[0].allowed
        vectors = np.stack([query.vector for query in queries])
        widest = max(query.k for query in queries)
        scores, rows = self._indexes[by].search(vectors, widest, self._findable(allowed))
        fresh = self.fresh.search(vectors, widest, allowed, by)
        return [self._merged(query, scores[i], rows[i], fresh, i) for i, query in enumerate(queries)]

    def _findable(self, allowed: Allowed | None) -> Mask | None:
        alive = ~self._dead if self._dead_count else None
        if allowed is None:
            return alive
        chosen = allowed(self.columns)
        return chosen if alive is None else chosen & alive

    def _merged(self, query: Query, scores: Scores, rows: Rows, fresh: FreshHits, place: int) -> Hits:
        # What was replaced since the main part was searched is in the fresh part by now.
        found = (rows >= 0) & ~self._dead[rows]
        scores = np.concatenate([scores[found], fresh.scores[place]])
        rows = np.concatenate([rows[found], fresh.rows[place] + len(self.ids)])
        # Equal scores in the order of rows, so that the pages of a search follow each other.
        order = np.lexsort((rows, -scores))[: query.k]
        order = order[np.isfinite(scores[order])]
        return Hits(scores[order], rows[order], self.ids, fresh)

    def _set_dead(self, ids: Sequence[str], *, dead: bool) -> None:
        rows = self.ids.rows_of(ids)
        rows = np.unique(rows[rows >= 0])
        changed = rows[self._dead[rows] != dead]
        self._dead[changed] = dead
        self._dead_count += len(changed) if dead else -len(changed)
