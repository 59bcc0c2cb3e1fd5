"""The same list for everyone: what most users met."""

from collections.abc import Sequence

import numpy as np

from keek_training.evaluation.baselines.protocol import Parameters, Training
from keek_training.evaluation.ranking import Score


class Popular:
    """Users of each video, over all time."""

    name = "popular"
    grid: Sequence[Parameters] = ({},)
    most_videos = None

    def fit(self, training: Training, parameters: Parameters) -> Score:
        """See `Baseline`."""
        counts = np.bincount(training.histories.videos, minlength=training.histories.video_count)
        return lambda histories: np.tile(counts.astype(np.float32), (len(histories), 1))
