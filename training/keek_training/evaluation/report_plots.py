"""The plots of an evaluation's report, as PNGs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from keek_training.evaluation.cases import Counted
from keek_training.evaluation.evaluate import MODEL, Evaluation
from keek_training.evaluation.metrics import per_user, recall_curve
from keek_training.evaluation.ranking import DEPTH
from keek_training.features import BoolArray
from keek_training.pages import png

_METRIC: Final = "recall@10"
_HEIGHT: Final = 3.8
_POPULARITY: Final = (0, 1, 10, 50, 200, 1000)
"""Users in training, each the least of a bucket."""
_LENGTHS: Final = (0, 1, 5, 10, 20, 50, 100)
"""Videos in a history, each the least of a bucket."""


@dataclass(frozen=True, slots=True)
class _Bucket:
    label: str
    targets: Counted


def plots(evaluation: Evaluation) -> dict[str, bytes]:
    """PNGs by title."""
    cases = evaluation.cases
    targets = cases.targets
    known = targets.videos >= 0
    popularity = np.where(known, cases.training_counts[targets.videos], 0)
    new = ~known | cases.is_new_video[targets.videos]
    lengths = cases.liked.lengths[targets.cases]
    return {
        "recall@k": png(lambda axes: _curves(axes, evaluation), _HEIGHT),
        f"{_METRIC} by how many users met the target in training": _bars(
            evaluation, _buckets(targets, popularity, _POPULARITY)
        ),
        f"{_METRIC} by length of the history": _bars(evaluation, _buckets(targets, lengths, _LENGTHS)),
        f"{_METRIC} of new videos, that training never met, and of others": _bars(
            evaluation, _named(targets, {"new videos": new, "others": ~new})
        ),
    }


def _curves(axes: Axes, evaluation: Evaluation) -> None:
    for name, ranked in evaluation.rankings.items():
        curve = recall_curve(ranked, evaluation.cases.targets)
        axes.plot(np.arange(DEPTH) + 1, curve, label=name, linewidth=2.5 if name == MODEL else 1.2)
    axes.set(xlabel="k", ylabel="recall@k", xscale="log")
    axes.set_ylim(bottom=0)
    axes.legend()


def _buckets(targets: Counted, values: npt.NDArray[np.int64], bounds: Sequence[int]) -> list[_Bucket]:
    """By the bounds; empty ones are left out."""
    masks = {}
    for low, high in zip(bounds, [*bounds[1:], None], strict=True):
        label = str(low) if high == low + 1 else f"{low}+" if high is None else f"{low} to {high - 1}"
        masks[label] = (values >= low) & (values < (np.inf if high is None else high))
    return _named(targets, masks)


def _named(targets: Counted, masks: dict[str, BoolArray]) -> list[_Bucket]:
    return [
        _Bucket(f"{label}\n({mask.sum():,})", targets.where(mask))
        for label, mask in masks.items()
        if mask.any()
    ]


def _bars(evaluation: Evaluation, buckets: Sequence[_Bucket]) -> bytes:
    """Bars of all rankings, bucket by bucket; below each, how many targets it holds."""
    return png(_drawing(evaluation, buckets), _HEIGHT)


def _drawing(evaluation: Evaluation, buckets: Sequence[_Bucket]) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        width = 0.8 / len(evaluation.rankings)
        places = np.arange(len(buckets))
        for number, (name, ranked) in enumerate(evaluation.rankings.items()):
            heights = [per_user(ranked, own.targets).values[_METRIC].mean() for own in buckets]
            axes.bar(places - 0.4 + (number + 0.5) * width, heights, width, label=name)
        axes.set_xticks(places, [own.label for own in buckets])
        axes.set_ylabel(_METRIC)
        axes.legend(fontsize="small")

    return draw
