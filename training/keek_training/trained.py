"""A model in training, its data, and the epochs that it has behind it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from keek_training.config import TrainConfig
from keek_training.features import Catalogue, Sequences
from keek_training.model import TwoTowers
from keek_training.windows import Split


@dataclass(frozen=True, slots=True)
class Epoch:
    """One entry of history.json."""

    epoch: int
    """Counted from 1; 0 is before any pass."""
    loss: float
    """Mean over the steps, dropout and hidden ids included."""
    train_s: float
    validation: dict[str, float]
    """Empty when nothing is held out."""


Measure = Callable[["Trained"], dict[str, float]]


@dataclass(slots=True)
class Trained:
    """A model in training, with all that it is trained and measured on."""

    config: TrainConfig
    model: TwoTowers
    catalogue: Catalogue
    sequences: Sequences
    parts: Split
    random: np.random.Generator
    """Draws the order of windows, and negatives."""
    measure: Measure | None = None
    """Tells how good the model is, `ndcg@10` at least, in the place of what is held out."""
    steps: int = 0
    """An epoch's."""
    history: list[Epoch] = field(default_factory=list)
    best: Epoch | None = None
    """The epoch whose weights the model has in the end; the last when nothing is held out."""
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def is_measured(self) -> bool:
        """Whether an epoch can be better than another."""
        return self.measure is not None or len(self.parts.validation) > 0
