"""What the gates saw, beyond their results: for the plots of a report."""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]


def _none() -> FloatArray:
    return np.empty(0, np.float32)


@dataclass(slots=True)
class Evidence:
    """Filled by `measure`; arrays stay empty where nothing was measured."""

    video_norms: FloatArray = field(default_factory=_none)
    """[videos]: L2 norms; of a large corpus, of a sample."""
    user_norms: FloatArray = field(default_factory=_none)
    """[users]: L2 norms of the sampled users."""
    overlaps: FloatArray = field(default_factory=_none)
    """[users]: share of the live release's feed that each sampled user gets again."""
    ranks: FloatArray = field(default_factory=_none)
    """[users]: how many videos stand before each held-out one."""
    live_ranks: FloatArray = field(default_factory=_none)
    """[users]: the same by the live release."""
    latencies_ms: dict[str, FloatArray] = field(default_factory=dict)
    """By what was called, as `user_tower` and `user_tower, live`: milliseconds of each call."""
