"""What a baseline is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from keek_training.evaluation.histories import Histories
from keek_training.evaluation.ranking import Score

Parameters = Mapping[str, float]
"""One point of a grid, by name."""


@dataclass(frozen=True, slots=True)
class Training:
    """What baselines learn from."""

    histories: Histories
    """What all users did not skip."""
    memo: dict[str, Any] = field(default_factory=dict)
    """What several baselines, or several points of a grid, share: it is computed once."""


class Baseline(Protocol):
    """One recommender."""

    @property
    def name(self) -> str:
        """By which results call it."""
        ...

    @property
    def grid(self) -> Sequence[Parameters]:
        """What is tried on the validation part; at least one point."""
        ...

    @property
    def most_videos(self) -> int | None:
        """The largest catalogue that it can be fitted to in memory and minutes; None for any."""
        ...

    def fit(self, training: Training, parameters: Parameters) -> Score:
        """Learns, and gives what scores all videos for a user's own history."""
        ...
