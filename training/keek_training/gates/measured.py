"""A release as the gates see it."""

from dataclasses import dataclass

from keek_server.releases.release import Corpus, Release
from keek_server.retrieval.index import Index, IndexReport
from keek_server.towers.contract import RANKER, VIDEO_TOWER, TowerContract
from keek_training.publishing.source import TowerSource


@dataclass(frozen=True, slots=True)
class Measured:
    """One release that Triton has loaded and whose corpus is embedded."""

    user_tower: int
    """Version in Triton."""
    video_tower: int
    """Version in Triton."""
    history_length: int
    corpus: Corpus
    index: Index
    """By the vectors of the video tower."""
    index_report: IndexReport
    source: TowerSource | None = None
    """What a candidate is made from; not needed of the live release."""
    ranker: int = 0
    """Version in Triton; 0 without one."""

    def version(self, tower: TowerContract) -> int:
        """The version of one tower, or of the ranker."""
        if tower == RANKER:
            return self.ranker
        return self.video_tower if tower == VIDEO_TOWER else self.user_tower

    @classmethod
    def of_release(cls, release: Release) -> "Measured":
        """A release that was published before."""
        manifest = release.manifest
        return cls(
            manifest.user_tower.version,
            manifest.video_tower.version,
            manifest.history_length,
            release.corpus,
            release.index,
            manifest.index,
        )
