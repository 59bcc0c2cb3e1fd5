"""A release as if other towers had made its vectors: for rankers of towers that do not serve yet."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from keek_server.releases.fresh import FreshVideos
from keek_server.storage.database import Database
from keek_server.videos.changes import Change, ChangeFeed
from keek_training.publishing.source import TowerSource
from keek_training.replay_target import OnnxTowers, Target

_IDS: Final = 500
"""Of one query."""


async def with_towers(
    target: Target, source: TowerSource, video_ids: Collection[str], database: Database
) -> Target:
    """The same release with the vectors of other towers, of some videos and of all users.

    Of videos that are removed, and of all others, vectors stay what they were: they mean nothing here.

    Args:
        target: A release.
        source: The towers, which read the same CLIP.
        video_ids: The videos that will be asked about.
        database: Has the catalogue.

    Raises:
        SetupError: When ONNX Runtime refuses a tower.
        UnavailableError: When the database is down or late.
    """
    manifest = target.release.manifest.model_copy(
        update={"history_length": source.history_length, "catalogue_seq": 0}
    )
    release = replace(target.release, manifest=manifest)
    towers = OnnxTowers(source)
    chosen = await _Chosen.read_from(database, sorted(video_ids))
    fresh = FreshVideos(release, chosen, towers, fresh_limit=max(1, len(video_ids)))
    await fresh.catch_up()
    return Target(release, fresh.index, towers)


class _Chosen(ChangeFeed):
    """Some videos alone, as if they all had just changed."""

    def __init__(self, database: Database, changes: Sequence[Change]) -> None:
        super().__init__(database)
        self._changes = changes

    @classmethod
    async def read_from(cls, database: Database, video_ids: Sequence[str]) -> "_Chosen":
        feed, found = ChangeFeed(database), list[Change]()
        for start in range(0, len(video_ids), _IDS):
            found += await feed.latest_of(video_ids[start : start + _IDS])
        return cls(database, sorted(found, key=lambda change: change.seq))

    async def read(self, after_seq: int, limit: int) -> Sequence[Change]:
        """See `ChangeFeed`."""
        return [change for change in self._changes if change.seq > after_seq][:limit]
