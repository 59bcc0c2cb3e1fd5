"""An index that lives: the main part as it was built, and what changed since, searched as one."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keek_server.retrieval.fresh import VECTORS, Allowed, Column, Columns, FreshHits, FreshPart
from keek_server.retrieval.ids import IdTable
from keek_server.retrieval.index import Index, Mask, Rows, Scores, Vectors
from keek_server.retrieval.postings import Postings
from keek_server.retrieval.query import Excluded, Hits, Query

_SAMPLE: Final = 4096
"""Rows that say which share of all meets a filter."""
_ROOM: Final = 1.25
_ROOM_LEAST: Final = 16
_DEEPEST_LEAST: Final = 1024
_DEEPEST_PART: Final = 128
"""Deeper than into this part of the rows, asking a filter about all of them costs less."""
_CHANGES_KEPT: Final = 1024
_DEEPEST_MOST: Final = 16_384
"""No index is tuned to search as deep, and Milvus does not."""


class _RowsOf(Mapping[str, npt.NDArray[Any]]):
    """Some rows of columns. Only the columns that are looked at are read, once each."""

    def __init__(self, columns: Columns, rows: Rows) -> None:
        self._columns = columns
        self._rows = rows
        self._read: dict[str, npt.NDArray[Any]] = {}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self._read:
            self._read[name] = self._columns[name][self._rows]
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


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
        postings: Mapping[str, Postings] | None = None,
    ) -> None:
        """
        Args:
            indexes: The main part: an index for each column of vectors that is searched.
            ids: Of its n rows.
            columns: Of the n rows: `vectors`, and what filters read.
            fresh_columns: The same columns, as the fresh part keeps them.
            fresh_limit: See `FreshPart`.
            postings: Of some of the columns.
        """
        self._indexes = indexes
        self._postings = postings or {}
        self.ids = ids
        self.columns = columns
        self.fresh = FreshPart(fresh_columns, limit=fresh_limit)
        self._dead = np.zeros(len(ids), np.bool_)
        self._dead_count = 0
        self._changed: tuple[int, tuple[str, ...]] = 0, ()
        # For filters.
        count = len(ids)
        self._sample = np.random.default_rng(0).permutation(count)[:_SAMPLE]
        self._sample.sort()
        self._sampled = _RowsOf(columns, self._sample)
        self._deepest = min(max(_DEEPEST_LEAST, count // _DEEPEST_PART), _DEEPEST_MOST)

    def put(self, ids: Sequence[str], columns: Columns) -> None:
        """Adds rows, or replaces those of the same ids."""
        # Rows that leave the fresh part leave the main part's own row, if there is one, as it was built.
        left = self.fresh.put(ids, columns)
        self._set_dead(left, dead=False)
        self._set_dead(ids, dead=True)
        self._note_changed([*left, *ids])

    def remove(self, ids: Sequence[str]) -> None:
        """Removes rows; ids that have none are passed over."""
        for id_ in ids:
            self.fresh.remove(id_)
        self._set_dead(ids, dead=True)
        self._note_changed(ids)

    @property
    def change_count(self) -> int:
        """How many rows were put or removed so far."""
        return self._changed[0]

    def changed_since(self, count: int) -> AbstractSet[str] | None:
        """The ids put or removed since there were `count` changes; None when they are too many to know."""
        total, last = self._changed
        if total - count > len(last):
            return None
        return frozenset(last[len(last) - (total - count) :])

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
        known, columns = self._columns_of(ids, (VECTORS,), self.ids.rows_of(ids))
        return known, columns[VECTORS]

    def columns_of(self, ids: Sequence[str], names: Iterable[str]) -> tuple[Mask, Columns]:
        """Some columns by id, of rows that live.

        Returns:
            Which of the n ids live, bool [n], and the columns of those, [living, ...] each.
        """
        rows = self.ids.rows_of(ids)
        rows[~self._alive(rows)] = -1
        return self._columns_of(ids, names, rows)

    def _columns_of(self, ids: Sequence[str], names: Iterable[str], rows: Rows) -> tuple[Mask, Columns]:
        """Of the fresh part, else of the given rows of the main part, where they are not -1."""
        known = rows >= 0
        columns = {}
        fresh = [place for place, id_ in enumerate(ids) if id_ in self.fresh]
        known[fresh] = True
        for name in names:
            if not fresh:
                columns[name] = np.asarray(self.columns[name][rows[known]])
                continue
            values = np.asarray(self.columns[name][rows])
            for place in fresh:
                values[place] = self.fresh.get(ids[place], name)
            columns[name] = values[known]
        return known, columns

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        """The rows with the largest dot products, for each query; fewer than wanted only where there are no
        more."""
        hits: dict[int, Hits] = {}
        together: dict[str, list[int]] = {}
        for place, query in enumerate(queries):
            if query.allowed is None:
                together.setdefault(query.by, []).append(place)
            else:
                hits[place] = self._search_filtered(query, query.allowed)
        for places in together.values():
            found = self._search_together([queries[place] for place in places])
            hits.update(zip(places, found, strict=True))
        return [hits[place] for place in range(len(queries))]

    def _search_together(self, queries: Sequence[Query]) -> list[Hits]:
        """Searches one column for several queries without filters by columns."""
        by = queries[0].by
        vectors = np.array([query.vector for query in queries])
        widest = max(query.k + _spare(query) for query in queries)
        alive_count = len(self.ids) - self._dead_count
        if alive_count < self._dead_count:
            depth, findable = widest, ~self._dead
        else:
            # Room for rows that were removed, if they lie as all others do.
            depth, findable = widest + math.ceil(widest * self._dead_count / max(1, alive_count)), None
        scores, rows = self._indexes[by].search(vectors, depth, findable)
        alive = self._alive(rows)
        fresh = self.fresh.search(vectors, max(map(self._fresh_k, queries)), None, by)
        found = []
        for place, query in enumerate(queries):
            own, own_scores, own_rows = alive[place], scores[place], rows[place]
            if query.excluded:
                own[own] = self._keeps(own_rows[own], query.excluded)
            count = np.count_nonzero(own)
            if count < query.k and self._may_hold_more(own_rows, depth):
                found.append(self._search_filtered(query, None))
                continue
            if count < len(own):
                own_scores, own_rows = own_scores[own], own_rows[own]
            found.append(self._merged(query, own_scores, own_rows, fresh, place))
        return found

    def _search_filtered(self, query: Query, allowed: Allowed | None) -> Hits:
        """Searches for one query, alone."""
        scores, rows = self._search_main(query, allowed)
        fresh = self.fresh.search(query.vector[None], self._fresh_k(query), allowed, query.by)
        return self._merged(query, scores, rows, fresh, 0)

    def _search_main(self, query: Query, allowed: Allowed | None) -> tuple[Scores, Rows]:
        """What the main part has, [found] each.

        A filter that many rows meet is asked about the best rows, as many as should be enough. One that few
        meet is asked about those that postings name, or else about all rows.
        """
        vector, index = query.vector[None], self._indexes[query.by]
        share, spare = self._share(allowed), _spare(query)
        while (
            share and (depth := math.ceil(_ROOM * (query.k + spare) / share) + _ROOM_LEAST) <= self._deepest
        ):
            scores, rows = index.search(vector, depth)
            met = self._alive(rows[0])
            if allowed is not None:
                met[met] = allowed(_RowsOf(self.columns, rows[0][met]))
            met_count = int(met.sum())
            if query.excluded:
                met[met] = self._keeps(rows[0][met], query.excluded)
            count = int(met.sum())
            if count >= query.k or not self._may_hold_more(rows[0], depth):
                return scores[0][met], rows[0][met]
            if met_count < query.k + spare:
                # Fewer lie near this query than elsewhere.
                share = min(share / 2, met_count / depth)
            spare = 2 * max(spare, met_count - count)
        scores, rows = index.search(vector, query.k, self._findable(query, allowed))
        met = self._alive(rows[0])
        return scores[0][met], rows[0][met]

    def _findable(self, query: Query, allowed: Allowed | None) -> Mask:
        """All rows of the main part that a query may find."""
        among = query.among(self._postings) if query.among is not None else None
        if allowed is None:
            findable = ~self._dead
        elif among is None:
            findable = allowed(self.columns) & ~self._dead
        else:
            findable = np.zeros(len(self._dead), np.bool_)
            findable[among] = allowed(_RowsOf(self.columns, among)) & ~self._dead[among]
        findable[query.excluded.rows(self.ids)] = False
        return findable

    def _keeps(self, rows: Rows, excluded: Excluded) -> Mask:
        """Which rows of the main part a query may find, as far as their ids say."""
        return excluded.keeps(self.ids.ids_of(rows))

    def _fresh_k(self, query: Query) -> int:
        """Rows wanted of the fresh part: what is excluded may be the best of it."""
        return query.k + min(len(query.excluded), len(self.fresh))

    @staticmethod
    def _may_hold_more(rows: Rows, depth: int) -> bool:
        """Whether a search that was to find `depth` rows has found that many."""
        return len(rows) == depth and bool(rows[-1] >= 0)

    def _share(self, allowed: Allowed | None) -> float:
        """Which share of the rows may be found, about."""
        alive = ~self._dead[self._sample]
        if allowed is not None:
            alive &= allowed(self._sampled)
        return float(alive.mean()) if len(alive) else 0.0

    def _alive(self, rows: Rows) -> Mask:
        """Which rows were found and are there. Asked before the fresh part is searched, which has what is
        replaced before it is marked as dead here: nothing is lost between the two."""
        return (rows >= 0) & ~self._dead[rows]

    def _merged(self, query: Query, scores: Scores, rows: Rows, fresh: FreshHits, place: int) -> Hits:
        if fresh.rows.shape[1]:
            # Only what stands before the last one wanted of the main part.
            least = scores[query.k - 1] if len(scores) >= query.k else -np.inf
            fresh_scores, fresh_rows = fresh.best(place, least, query.excluded.keeps)
            scores = np.concatenate([scores, fresh_scores])
            rows = np.concatenate([rows, fresh_rows + len(self.ids)])
        if (scores[1:] < scores[:-1]).all() and np.isfinite(scores[-1:]).all():
            return Hits(scores[: query.k], rows[: query.k], self.ids, fresh)
        # Equal scores in the order of rows, so that the pages of a search follow each other.
        order = np.lexsort((rows, -scores))[: query.k]
        order = order[np.isfinite(scores[order])]
        return Hits(scores[order], rows[order], self.ids, fresh)

    def _note_changed(self, ids: Sequence[str]) -> None:
        # Replaced as a whole, for readers in other threads.
        count, last = self._changed
        self._changed = count + len(ids), (*last, *ids)[-_CHANGES_KEPT:]

    def _set_dead(self, ids: Sequence[str], *, dead: bool) -> None:
        rows = self.ids.rows_of(ids)
        rows = np.unique(rows[rows >= 0])
        changed = rows[self._dead[rows] != dead]
        self._dead[changed] = dead
        self._dead_count += len(changed) if dead else -len(changed)


def _spare(query: Query) -> int:
    """How many more rows than wanted are searched at first, for those that are excluded."""
    return min(len(query.excluded), query.k)
