"""What Keek has in Milvus: a collection a release, and the alias of the active one."""

import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

import numpy as np

from keek_server.errors import SetupError
from keek_server.retrieval.index import Rows, Scores, Vectors
from keek_server.retrieval.milvus_connection import Connection, pymilvus
from keek_server.settings import Settings
from keek_server.towers.contract import DIMENSION

TOPK_MOST: Final = 16_384
"""Milvus gives no more rows a query."""

_RESULTS_MOST: Final = 1 << 20
"""Of one call: Milvus bounds the bytes of an answer (100 MiB, about 20 a row)."""
_ROW: Final = "row"
_VECTOR: Final = "vector"
_INSERT_S: Final = 60.0
_LOAD_S: Final = 600.0
_BUILD_S: Final = 6 * 3600.0
"""For an index over all rows. That Milvus is gone shows at once."""

logger = logging.getLogger(__name__)


class Milvus:
    """The collections of one Milvus. Calls block, and may come from any thread.

    Methods raise UnavailableError when Milvus is gone, late or refuses, and SetupError when it cannot be
    reached as configured.
    """

    def __init__(self, connection: Connection, *, alias: str) -> None:
        """
        Args:
            connection: Closed by the caller. Its deadline holds for one call; those that build or load have
                longer ones of their own.
            alias: See `Settings.milvus_alias`.
        """
        self._calls = connection.calls
        self._alias = alias
        self._deadline_s = connection.deadline_s

    def name_of(self, release_id: str) -> str:
        """The name of a release's collection: Milvus knows no `-`."""
        return f"{self._alias}_{release_id.replace('-', '_')}"

    def releases(self) -> list[str]:
        """The ids of the releases that have a collection."""
        with self._calls("list collections") as client:
            names = client.list_collections(timeout=self._deadline_s)
        first = f"{self._alias}_"
        return [name.removeprefix(first).replace("_", "-") for name in names if name.startswith(first)]

    def create(self, release_id: str) -> str:
        """An empty collection for a release; what an earlier publisher left of it goes.

        Returns:
            Its name.
        """
        self.drop(release_id)
        name = self.name_of(release_id)
        with self._calls(f"create {name}") as client:
            types = pymilvus().DataType
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field(_ROW, types.INT64, is_primary=True)
            schema.add_field(_VECTOR, types.FLOAT_VECTOR, dim=DIMENSION)
            # It is never changed once it is searched: no search has to wait for what is newest.
            client.create_collection(
                name, schema=schema, consistency_level="Eventually", timeout=self._deadline_s
            )
        return name

    def insert(self, collection: str, start: int, vectors: Vectors) -> None:
        """Adds rows from `start` on, with their vectors, float32 [n, DIMENSION]."""
        rows = [{_ROW: row, _VECTOR: vector} for row, vector in enumerate(vectors, start)]
        with self._calls(f"insert into {collection}") as client:
            client.insert(collection, rows, timeout=_INSERT_S)

    def build(self, collection: str, kind: str, nlist: int) -> None:
        """Indexes all rows that were inserted.

        Args:
            collection: Its name.
            kind: Milvus's name of a kind of index.
            nlist: Lists a segment; 0 for a kind without.
        """
        with self._calls(f"index {collection}") as client:
            client.flush(collection, timeout=_LOAD_S)
            index = client.prepare_index_params()
            # As JSON under `params`: Milvus Lite reads no others, Milvus reads both.
            parameters = {"params": {"nlist": nlist}} if nlist else {}
            index.add_index(_VECTOR, index_type=kind, metric_type="IP", params=parameters)
            client.create_index(collection, index, timeout=_BUILD_S)

    def open(self, release_id: str, videos: int) -> str:
        """Has Milvus load a release's collection, unless it has.

        Args:
            release_id: The release.
            videos: How many rows it must have.

        Returns:
            The collection's name.

        Raises:
            SetupError: When it is not there, or not whole.
        """
        name = self.name_of(release_id)
        with self._calls(f"open {name}") as client:
            if not client.has_collection(name, timeout=self._deadline_s):
                raise SetupError(f"Milvus lacks collection {name} of release {release_id}: publish again")
            self.load(name)
            counted = client.query(
                name, output_fields=["count(*)"], consistency_level="Strong", timeout=self._deadline_s
            )
        if (count := counted[0]["count(*)"]) != videos:
            raise SetupError(f"collection {name} in Milvus has {count} rows, not {videos}: publish again")
        return name

    def load(self, collection: str) -> None:
        """Has Milvus load a collection, unless it has."""
        with self._calls(f"load {collection}") as client:
            state = client.get_load_state(collection, timeout=self._deadline_s)["state"]
            if state != pymilvus().client.types.LoadState.Loaded:
                client.load_collection(collection, timeout=_LOAD_S)

    def drop(self, release_id: str) -> None:
        """Removes a release's collection, if there is one."""
        name = self.name_of(release_id)
        with self._calls(f"drop {name}") as client:
            if not client.has_collection(name, timeout=self._deadline_s):
                return
            # Milvus drops no collection that has a name beside its own.
            for alias in client.list_aliases(name, timeout=self._deadline_s)["aliases"]:
                client.drop_alias(alias, timeout=self._deadline_s)
            client.drop_collection(name, timeout=self._deadline_s)

    def point_alias(self, release_id: str) -> None:
        """Makes the alias stand for a release's collection."""
        name = self.name_of(release_id)
        with self._calls(f"switch alias {self._alias} to {name}") as client:
            if self._alias in client.list_aliases(name, timeout=self._deadline_s)["aliases"]:
                return
            try:
                client.alter_alias(name, self._alias, timeout=self._deadline_s)
            except pymilvus().MilvusException:
                # There is none yet.
                client.create_alias(name, self._alias, timeout=self._deadline_s)
        logger.info("Milvus: %s is %s", self._alias, name)

    def search(self, collection: str, queries: Vectors, k: int, nprobe: int) -> tuple[Scores, Rows]:
        """What Milvus finds, best first.

        Args:
            collection: A loaded one.
            queries: float32 [n, DIMENSION], all finite.
            k: 1 to TOPK_MOST.
            nprobe: Lists to search a segment; 0 for an index without.

        Returns:
            Scores float32 [n, k] and rows int64 [n, k], -inf and -1 behind the last one found.
        """
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        parameters = {"metric_type": "IP", "params": {"nprobe": nprobe} if nprobe else {}}
        at_once = max(1, _RESULTS_MOST // k)
        for start in range(0, len(queries), at_once):
            with self._calls(f"search {collection}") as client:
                found = client.search(
                    collection,
                    list(queries[start : start + at_once]),
                    anns_field=_VECTOR,
                    limit=k,
                    search_params=parameters,
                    timeout=self._deadline_s,
                )
            for place, hits in enumerate(found, start):
                scores[place, : len(hits)], rows[place, : len(hits)] = hits.distances, hits.ids
        return scores, rows


@contextmanager
def open_milvus(settings: Settings, deadline_s: float | None = None) -> Iterator[Milvus | None]:
    """The Milvus that settings name, None where they name none; it is connected when it is needed.

    Args:
        settings: Where it is.
        deadline_s: Another deadline for one call than that of servers.
    """
    if settings.milvus_url is None:
        yield None
        return
    token = settings.milvus_token.get_secret_value() if settings.milvus_token else ""
    with closing(
        Connection(settings.milvus_url, token=token, deadline_s=deadline_s or settings.milvus_deadline_s)
    ) as connection:
        yield Milvus(connection, alias=settings.milvus_alias)
