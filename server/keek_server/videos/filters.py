"""Conditions on the videos that a search may find."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

import numpy as np
import numpy.typing as npt

from keek_server.retrieval.fresh import Allowed, Columns
from keek_server.retrieval.ids import hash_id
from keek_server.retrieval.index import Mask, Rows
from keek_server.retrieval.postings import Postings
from keek_server.towers.features import Int32Array, pad_tags
from keek_server.videos.locales import language_hashes, region_hashes

_BLOCK_ROWS = 4096
"""Rows whose tags stay in a core's cache while each wanted tag is looked for."""


FILTERED_COLUMNS: Final = ("owners", "tags", "languages", "regions", "durations_s", "create_times_us")
"""The columns of videos that conditions look at."""


@dataclass(frozen=True, slots=True)
class VideoFilter:
    """All of those that are set must hold."""

    tags: Sequence[str] = ()
    """At least one of them."""
    owner_id: str = ""
    min_duration_s: float = 0.0
    """0 sets no bound; a video of unknown duration meets neither, as the next."""
    max_duration_s: float = 0.0
    created_after_us: int = 0
    languages: Sequence[str] = ()
    """One of them, in any case: `pt` is met by `pt-BR`, too, `pt-BR` by itself alone."""
    regions: Sequence[str] = ()
    """One of them, in any case. A video of unknown region meets none, as one of unknown language."""

    @property
    def is_set(self) -> bool:
        """Whether it asks for anything."""
        return self is not ANY_VIDEO and self != ANY_VIDEO

    @property
    def allowed(self) -> Allowed | None:
        """`mask`, where it asks for anything."""
        return self.mask if self.is_set else None

    def rows(self, postings: Mapping[str, Postings]) -> Rows | None:
        """Rows of videos, all that meet it among them, where the owner or the tags say which; else None."""
        if self.owner_id and "owners" in postings:
            return postings["owners"].rows_with([hash_id(self.owner_id)])
        if self.tags and "tags" in postings:
            return postings["tags"].rows_with(pad_tags([[tag] for tag in self.tags])[:, 0])
        return None

    def mask(self, columns: Columns) -> Mask:
        """Which of n videos meet it: bool [n], from their VIDEO_COLUMNS."""
        chosen = np.ones(len(columns["owners"]), np.bool_)
        if self.owner_id:
            chosen &= columns["owners"] == np.uint64(hash_id(self.owner_id))
        if self.tags:
            chosen &= _have_one(columns["tags"], pad_tags([[tag] for tag in self.tags])[:, 0])
        if self.languages:
            chosen &= _speak_one(columns["languages"], self.languages)
        if self.regions:
            chosen &= _are_one(columns["regions"], region_hashes(self.regions))
        durations_s = columns["durations_s"]
        if self.min_duration_s:
            chosen &= durations_s >= self.min_duration_s
        if self.max_duration_s:
            chosen &= (durations_s <= self.max_duration_s) & (durations_s > 0)
        if self.created_after_us:
            chosen &= columns["create_times_us"] >= self.created_after_us
        return chosen


ANY_VIDEO: Final = VideoFilter()
"""Asks nothing."""


def _have_one(tags: Int32Array, wanted: Int32Array) -> Mask:
    """Which rows of `tags`, [n, MAX_TAGS], hold one of `wanted`, [at least 1]: bool [n]."""
    chosen = np.empty(len(tags), np.bool_)
    for start in range(0, len(tags), _BLOCK_ROWS):
        met = _are_one(tags[start : start + _BLOCK_ROWS], wanted)
        # Eight flags at a time: numpy takes many times longer for `any` over so few columns.
        chosen[start : start + _BLOCK_ROWS] = reduce(np.bitwise_or, met.view(np.uint64).T) != 0
    return chosen


def _speak_one(hashes: Int32Array, languages: Sequence[str]) -> Mask:
    """Which rows of `hashes`, [n, 2], are of one of `languages`: bool [n]."""
    wanted = language_hashes(languages)
    # A language without further subtags is met by every video that shares its primary one.
    is_whole = np.array(["-" in language for language in languages])
    return _are_one(hashes[:, 0], wanted[~is_whole, 0]) | _are_one(hashes[:, 1], wanted[is_whole, 1])


def _are_one(values: Int32Array, wanted: Int32Array) -> npt.NDArray[np.bool_]:
    """Which of `values` are one of `wanted`, in their shape."""
    met = np.zeros(values.shape, np.bool_)
    for value in wanted:
        met |= values == value
    return met
