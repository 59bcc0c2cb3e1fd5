"""A user's history, decoded only as far as it is looked at."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, overload

import xxhash

from keek_server.interactions.kinds import KINDS, InteractionKind


class HistoryEntry(NamedTuple):
    """One interaction of a user's history."""

    video_id: str
    kind: InteractionKind
    event_time_us: int


class History(Sequence[HistoryEntry]):
    """Interactions, newest last.

    Most feeds ask only whether there are any, and whether they are the same as before.
    """

    __slots__ = ("_digest", "_encoded")

    def __init__(self, encoded: Sequence[str] = ()) -> None:
        """
        Args:
            encoded: `kind:time:video` each, as the projection keeps them.
        """
        self._encoded = encoded
        self._digest: bytes | None = None

    @classmethod
    def of(cls, entries: Iterable[HistoryEntry]) -> "History":
        """The history of some entries."""
        return cls([f"{entry.kind:d}:{entry.event_time_us}:{entry.video_id}" for entry in entries])

    def digest(self) -> bytes:
        """128 bits that two histories share only when they are equal."""
        if self._digest is None:
            # No id holds a NUL.
            self._digest = xxhash.xxh3_128_digest("\0".join(self._encoded).encode())
        return self._digest

    def __len__(self) -> int:
        return len(self._encoded)

    def __iter__(self) -> Iterator[HistoryEntry]:
        return map(_entry, self._encoded)

    @overload
    def __getitem__(self, place: int) -> HistoryEntry: ...
    @overload
    def __getitem__(self, place: slice) -> "History": ...
    def __getitem__(self, place: int | slice) -> "HistoryEntry | History":
        if isinstance(place, slice):
            part = self._encoded[place]
            return self if part == self._encoded else History(part)
        return _entry(self._encoded[place])


def _entry(encoded: str) -> HistoryEntry:
    kind, event_time_us, video_id = encoded.split(":", 2)
    return HistoryEntry(video_id, KINDS[int(kind)], int(event_time_us))
