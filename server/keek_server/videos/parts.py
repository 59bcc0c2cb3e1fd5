"""Names of an upload's parts, and which of them make it whole.

Calls of one upload may overlap, also on several servers. So a part never takes the place of another: its
name is its own, and says which bytes it holds.
"""

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

_NAME = re.compile(r"(\d{15})-(\d{15})-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Part:
    """Some bytes of an upload."""

    path: str
    start: int
    end: int
    """Behind the last byte."""


def new_name(start: int, size: int) -> str:
    """A name that no other part has."""
    return f"{start:015d}-{start + size:015d}-{uuid.uuid4().hex}"


def parse(paths: Iterable[str]) -> list[Part]:
    """The parts among some files; what a server that died left half written is none."""
    names = ((path, _NAME.fullmatch(path.rpartition("/")[2])) for path in paths)
    return [Part(path, int(name[1]), int(name[2])) for path, name in names if name]


def cover(parts: Iterable[Part], size: int) -> list[Part]:
    """The fewest parts that hold the bytes from 0 to `size`, or to the first gap, in order."""
    chosen: list[Part] = []
    reached = 0
    left = list(parts)
    while reached < size:
        left = [part for part in left if part.end > reached]
        best = max((part for part in left if part.start <= reached), key=lambda p: p.end, default=None)
        if best is None:
            break
        chosen.append(best)
        reached = best.end
    return chosen
