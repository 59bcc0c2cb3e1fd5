"""Languages and regions of videos, as filters compare them: hashes, alike for every spelling."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Final

import numpy as np

from keek_server.towers.features import Int32Array, hash_ids

LANGUAGE_PATTERN: Final = "[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*"
"""The form of a BCP 47 language tag, as `FieldRules.language` in the contract has it."""

_REMEMBERED = 10_000


def language_hashes(languages: Sequence[str]) -> Int32Array:
    """Hashes of n languages: int32 [n, 2], of the primary subtag and of the whole tag; zeros where empty."""
    hashes = chain.from_iterable(map(_language_hashes, languages))
    return np.fromiter(hashes, np.int32, count=2 * len(languages)).reshape(-1, 2)


def region_hashes(regions: Sequence[str]) -> Int32Array:
    """Hashes of n regions: int32 [n], 0 where empty."""
    return np.fromiter(map(_region_hash, regions), np.int32, count=len(regions))


# Few different ones are on many videos.
@lru_cache(_REMEMBERED)
def _language_hashes(language: str) -> tuple[int, int]:
    whole = language.lower()
    primary, own = hash_ids([whole.partition("-")[0], whole])[:, 0].tolist()
    return primary, own


@lru_cache(_REMEMBERED)
def _region_hash(region: str) -> int:
    return int(hash_ids([region.upper()])[0, 0])
