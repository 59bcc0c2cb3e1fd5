"""The videos that were found for users, kept while a search would find the same again."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from keek_server.retrieval.ids import hash_id
from keek_server.retrieval.live import LiveIndex
from keek_server.towers.features import Float32Array

FoundVideo: TypeAlias = tuple[str, float, int]
"""One that was found: its id, its score, and the hash of its owner's id. Plain, as they are many."""

_NONE: Final[frozenset[int]] = frozenset()
_BETWEEN: Final = "\0"
"""No id holds a NUL."""


@dataclass(slots=True)
class _Kept:
    """One user's list: some 1.5 KiB for fifty videos."""

    vector: Float32Array
    """What was searched with: the very object."""
    seen: tuple[int, int]
    """Number and hash of the seen videos' ids, which may be thousands."""
    change_count: int
    """Of the videos, from before the search."""
    video_ids: str
    scores: Float32Array
    owners: npt.NDArray[np.uint64]
    is_whole: bool
    """There are no more."""


class FoundVideos:
    """The lists of one release's users, those that were found last."""

    def __init__(self, limit: int) -> None:
        """
        Args:
            limit: Users whose lists are kept; 0 keeps none.
        """
        self._limit = limit
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(
        self,
        user_id: str,
        vector: Float32Array,
        videos: LiveIndex,
        count: int,
        *,
        seen: frozenset[str],
        served: frozenset[int] = _NONE,
    ) -> list[FoundVideo] | None:
        """The first `count` videos that a search would find, or all if there are fewer.

        Args:
            user_id: Whose they are.
            vector: What would be searched with: only the object that was searched with is the same.
            videos: What would be searched.
            count: Videos wanted.
            seen: Ids that must not be found.
            served: Hashes of further ones.

        Returns:
            None where only a search can tell.
        """
        kept = self._kept.get(user_id)
        if kept is None or kept.vector is not vector or kept.seen != _summary(seen):
            return None
        video_ids = kept.video_ids.split(_BETWEEN) if kept.video_ids else []
        if kept.change_count != videos.change_count and not _holds(kept, video_ids, videos):
            return None
        # What was served is seldom among them: without it, no more are made than are asked for.
        made = len(video_ids) if served else count
        columns = video_ids[:made], kept.scores[:made].tolist(), kept.owners[:made].tolist()
        found = list(zip(*columns, strict=True))
        if served:
            found = [video for video in found if hash_id(video[0]) not in served]
        return found[:count] if len(found) >= count or kept.is_whole else None

    def keep(
        self,
        user_id: str,
        vector: Float32Array,
        found: Sequence[FoundVideo],
        *,
        seen: frozenset[str],
        change_count: int,
        is_whole: bool,
    ) -> None:
        """Keeps what a search found.

        Args:
            user_id: Whose they are.
            vector: What was searched with.
            found: Best first.
            seen: Ids that must not be found.
            change_count: Of the videos, from before the search.
            is_whole: Whether there are no more.
        """
        if not self._limit:
            return
        self._kept.pop(user_id, None)
        self._kept[user_id] = _Kept(
            vector,
            _summary(seen),
            change_count,
            _BETWEEN.join(video_id for video_id, _, _ in found),
            np.array([score for _, score, _ in found], np.float32),
            np.array([owner for _, _, owner in found], np.uint64),
            is_whole,
        )
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)


def _summary(ids: frozenset[str]) -> tuple[int, int]:
    return len(ids), hash(ids)


def _holds(kept: _Kept, video_ids: Sequence[str], videos: LiveIndex) -> bool:
    """Whether what changed since leaves the list as it is: nothing of it did, and nothing new is in it."""
    change_count = videos.change_count
    changed = videos.changed_since(kept.change_count)
    if changed is None or kept.is_whole or not changed.isdisjoint(video_ids):
        return False
    # Of removed videos there are vectors as well: they cost a search now and then.
    _, vectors = videos.vectors_of(list(changed))
    if (vectors @ kept.vector >= kept.scores[-1]).any():
        return False
    kept.change_count = change_count
    return True
