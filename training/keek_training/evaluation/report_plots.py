"""The plots of an evaluation's report, as PNGs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from keek_training.evaluation.cases import Counted
from keek_training.evaluation.evaluate import MODEL, Evaluation
from keek_training.evaluation.metrics import per_user, recall_curve
from keek_training.evaluation.ranking import DEPTH, Ranked
from keek_training.features import BoolArray
from keek_training.pages import png

_METRIC: Final = "recall@10"
_HEIGHT: Final = 3.8
COLD_START: Final = "Users as if they were new, of whom so many videos are known"
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
    images = {
        "recall@k": png(lambda axes: _curves(axes, evaluation), _HEIGHT),
        f"{_METRIC} by how many users met the target in training": _bars(
            evaluation, _buckets(targets, popularity, _POPULARITY)
        ),
        f"{_METRIC} by length of the history": _bars(evaluation, _buckets(targets, lengths, _LENGTHS)),
        f"{_METRIC} of new videos, that training never met, and of others": _bars(
            evaluation, _named(targets, {"new videos": new, "others": ~new})
        ),
    }
    if evaluation.cold:
        images[f"{_METRIC}: {COLD_START[0].lower()}{COLD_START[1:]}"] = png(
            lambda axes: _cold_start(axes, evaluation), _HEIGHT
        )
    return images


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
    heights = {
        name: [_mean(ranked, own.targets) for own in buckets] for name, ranked in evaluation.rankings.items()
    }
    return lambda axes: _grouped(axes, heights, [own.label for own in buckets])


def _cold_start(axes: Axes, evaluation: Evaluation) -> None:
    """Bars by what is known; beside them what the same users get with their whole history."""
    cold = evaluation.cold
    heights = {
        name: [_mean(own.rankings[name], own.cases.targets) for own in cold] for name in evaluation.rankings
    }
    labels = [f"{own.length}\n({len(own.cases):,} users)" for own in cold]
    first = next(iter(evaluation.rankings))
    whole = [_mean(own.whole[first], own.cases.targets) for own in cold]
    axes.hlines(whole, np.arange(len(cold)) - 0.4, np.arange(len(cold)) + 0.4, "black", "dashed", linewidth=1)
    _grouped(axes, heights, labels)
    axes.set_xlabel(f"videos that are known; dashed: {first} with the whole history of the same users")


def _mean(ranked: Ranked, targets: Counted) -> float:
    return float(per_user(ranked, targets).values[_METRIC].mean())


def _grouped(axes: Axes, heights: Mapping[str, Sequence[float]], labels: Sequence[str]) -> None:
    width = 0.8 / len(heights)
    places = np.arange(len(labels))
    for number, (name, own) in enumerate(heights.items()):
        axes.bar(places - 0.4 + (number + 0.5) * width, own, width, label=name)
    axes.set_xticks(places, labels)
    axes.set_ylabel(_METRIC)
    axes.legend(fontsize="small")
