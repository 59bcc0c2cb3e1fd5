"""What a feed is made with, where experiments may differ from the settings."""

from dataclasses import dataclass
from typing import Final

from keek_server.experiments.definitions import ArmParameters


@dataclass(frozen=True, slots=True)
class FeedParameters:
    """One feed's."""

    personalised_share: float = 0.7
    """Of the slots; the rest is trending."""
    per_owner_cap: int = 2
    """Videos of one owner on a page."""
    trending_slots: int | None = None
    """Of each page, instead of a share."""
    exploration: float = 0.0
    """Share of the slots whose source is drawn by chance."""
    video_exploration: float = 0.0
    """Share of the personalised slots whose video is drawn by chance, among the best few."""
    ranker: bool = False
    """Whether the release's ranker, if it has one, orders the personalised videos."""

    @property
    def explores(self) -> bool:
        """Whether anything is left to chance."""
        return bool(self.exploration or self.video_exploration)

    def trending_share(self, page_size: int) -> float:
        """Share of a page's slots."""
        if self.trending_slots is not None:
            return min(1.0, self.trending_slots / page_size)
        return 1.0 - self.personalised_share

    def with_arm(self, arm: ArmParameters) -> "FeedParameters":
        """The same, but for what arms of experiments set."""
        own_split = arm.personalised_share is not None or arm.trending_slots is not None
        return FeedParameters(
            self.personalised_share if arm.personalised_share is None else arm.personalised_share,
            self.per_owner_cap if arm.per_owner_cap is None else arm.per_owner_cap,
            arm.trending_slots if own_split else self.trending_slots,
            self.exploration if arm.exploration is None else arm.exploration,
            self.video_exploration if arm.video_exploration is None else arm.video_exploration,
            self.ranker if arm.ranker is None else arm.ranker,
        )


USUAL: Final = FeedParameters()
"""The settings' defaults."""
