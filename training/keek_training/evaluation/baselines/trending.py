"""The same list for everyone: what users did lately, as the server's trending list counts it."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from keek_server.settings import Settings
from keek_training.evaluation.baselines.protocol import Parameters, Training
from keek_training.evaluation.ranking import Score

_HOUR_US: Final = 3600e6


class Trending:
    """Forward decay (Cormode et al., "Forward Decay", 2009) at the end of the training, with the weights of
    kinds that serving has by default."""

    name = "trending"
    grid: Sequence[Parameters] = tuple({"half_life_h": hours} for hours in (10.8, 24, 72, 168, 720))
    most_videos = None

    def fit(self, training: Training, parameters: Parameters) -> Score:
        """See `Baseline`."""
        own = training.histories
        weights = np.zeros(int(own.kinds.max(initial=0)) + 1)
        for kind, weight in Settings.model_fields["interaction_weights"].get_default().items():
            if kind < len(weights):
                weights[kind] = weight
        ages = (own.times_us.max(initial=0) - own.times_us) / (parameters["half_life_h"] * _HOUR_US)
        scores = np.bincount(own.videos, weights[own.kinds] * 2.0**-ages, minlength=own.video_count)
        return lambda histories: np.tile(scores.astype(np.float32), (len(histories), 1))
