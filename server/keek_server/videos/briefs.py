"""Briefs that are remembered, never older than what was forgotten."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from keek_server.videos.video import Brief

_REMEMBERED = 200_000


class _Reading:
    """A read of the database that is under way."""

    def __init__(self) -> None:
        self.forgotten: set[str] = set()
        self.all_forgotten = False


class BriefCache:
    """Whoever follows the catalogue's changes forgets the brief of each video that changed."""

    def __init__(self) -> None:
        self._briefs: OrderedDict[str, Brief] = OrderedDict()
        self._readings: set[_Reading] = set()
        self.forget_count = 0
        """How often something was forgotten: as long as it stands still, what was known before is known."""

    def known(self, video_ids: Iterable[str]) -> dict[str, Brief]:
        """Those of them that are remembered."""
        return {video_id: self._briefs[video_id] for video_id in video_ids if video_id in self._briefs}

    @contextmanager
    def reading(self) -> Iterator[_Reading]:
        """Around a read of the database, from before it begins until it is remembered."""
        reading = _Reading()
        self._readings.add(reading)
        try:
            yield reading
        finally:
            self._readings.discard(reading)

    def remember(self, briefs: Mapping[str, Brief], reading: _Reading) -> None:
        """Remembers what was read, but for what was forgotten since the read began: it may be older."""
        if reading.all_forgotten:
            return
        self._briefs.update(item for item in briefs.items() if item[0] not in reading.forgotten)
        while len(self._briefs) > _REMEMBERED:
            self._briefs.popitem(last=False)

    def forget(self, video_ids: Iterable[str]) -> None:
        """Reads these anew when they are asked for again."""
        forgotten = list(video_ids)
        self.forget_count += 1
        for video_id in forgotten:
            self._briefs.pop(video_id, None)
        for reading in self._readings:
            reading.forgotten.update(forgotten)

    def forget_all(self) -> None:
        """The same for all."""
        self.forget_count += 1
        self._briefs.clear()
        for reading in self._readings:
            reading.all_forgotten = True
