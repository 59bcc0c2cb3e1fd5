"""The vectors of a corpus that is being embedded, kept part by part: the long step goes on after a crash.

The file begins with a line of JSON that says what the vectors are of. Parts follow, each with its size and a
checksum: what a crash left half written, or a power cut never brought to the disk, is not taken for vectors.
"""

import asyncio
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from keek_server.retrieval.ids import hash_all
from keek_server.retrieval.index import Vectors
from keek_server.storage.database import Database
from keek_server.towers.contract import DIMENSION
from keek_server.videos.changes import ChangeFeed
from keek_training.publishing.catalogue import Catalogue

_HEADER: Final = np.dtype([("count", "<u4"), ("crc32", "<u4")])
_ROW: Final = np.dtype([("id", "<u8"), ("vector", "<f4", (DIMENSION,))])
_PAGE: Final = 10_000


class Checkpoint:
    """Appends vectors to a file, and knows those that an earlier process appended."""

    def __init__(self, path: Path, rows: npt.NDArray[Any], changed: npt.NDArray[np.uint64]) -> None:
        self._path = path
        self._rows = rows
        self._changed = changed

    @classmethod
    async def open(cls, path: Path, fingerprint: str, seq: int, database: Database) -> "Checkpoint":
        """Reads the file if its vectors are of the same inputs, and begins it anew if not.

        Args:
            path: The file.
            fingerprint: Of what the vectors are made by.
            seq: The change of the catalogue up to which the caller has read it.
            database: Says which videos changed since the file was begun: their vectors are outdated.
        """
        kept = await asyncio.to_thread(_read, path, fingerprint)
        if kept is None:
            head = json.dumps({"fingerprint": fingerprint, "catalogue_seq": seq})
            await asyncio.to_thread(path.write_text, f"{head}\n", "utf-8")
            return cls(path, np.empty(0, _ROW), np.empty(0, np.uint64))
        rows, begun_seq = kept
        return cls(path, rows, await _changed_since(ChangeFeed(database), begun_seq))

    def restore(self, catalogue: Catalogue, vectors: Vectors) -> npt.NDArray[np.bool_]:
        """Fills in the vectors that are here and not outdated.

        Args:
            catalogue: n videos.
            vectors: float32 [n, DIMENSION], written to.

        Returns:
            bool [n]: which rows were filled in.
        """
        if not len(self._rows):
            return np.zeros(len(catalogue), np.bool_)
        own = hash_all(catalogue.video_ids)
        # Of a video that was embedded twice, the later vector counts.
        newest_first = self._rows[::-1]
        known, places = np.unique(newest_first["id"], return_index=True)
        found = np.searchsorted(known, own).clip(max=len(known) - 1)
        is_known: npt.NDArray[np.bool_] = (known[found] == own) & ~np.isin(own, self._changed)
        vectors[is_known] = newest_first["vector"][places[found[is_known]]]
        return is_known

    def add(self, video_ids: Sequence[str], vectors: Vectors) -> None:
        """Keeps the vectors of k videos: float32 [k, DIMENSION]. One call at a time."""
        rows = np.empty(len(video_ids), _ROW)
        rows["id"], rows["vector"] = hash_all(video_ids), vectors
        content = rows.tobytes()
        header = np.array([(len(rows), zlib.crc32(content))], _HEADER).tobytes()
        with self._path.open("ab") as file:
            file.write(header + content)


def _read(path: Path, fingerprint: str) -> tuple[npt.NDArray[Any], int] | None:
    """The rows, and the change of the catalogue that the file was begun at; None when it is of no use."""
    try:
        with path.open("r+b") as file:
            head = json.loads(file.readline())
            if head["fingerprint"] != fingerprint:
                return None
            begun_seq = int(head["catalogue_seq"])
            content = file.read()
            parts, end = _parts(content)
            # What is appended next comes behind the last part that is whole.
            file.truncate(file.tell() - len(content) + end)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return np.concatenate([np.empty(0, _ROW), *parts]), begun_seq


def _parts(content: bytes) -> tuple[list[npt.NDArray[Any]], int]:
    """The whole parts, and where the last of them ends."""
    parts: list[npt.NDArray[Any]] = []
    end = 0
    while end + _HEADER.itemsize <= len(content):
        header = np.frombuffer(content, _HEADER, 1, end)[0]
        start = end + _HEADER.itemsize
        stop = start + int(header["count"]) * _ROW.itemsize
        if not header["count"] or zlib.crc32(content[start:stop]) != header["crc32"]:
            break
        parts.append(np.frombuffer(content, _ROW, int(header["count"]), start))
        end = stop
    return parts, end


async def _changed_since(feed: ChangeFeed, seq: int) -> npt.NDArray[np.uint64]:
    """Hashes of the videos that changed after `seq`: uint64 [n]."""
    changed: list[str] = []
    while page := await feed.read_ids(seq, _PAGE):
        changed += [video_id for _, video_id in page]
        seq = page[-1][0]
    return hash_all(changed)
