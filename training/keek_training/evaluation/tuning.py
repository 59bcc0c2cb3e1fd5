"""Baselines tuned by a small grid, on a validation part of what was trained on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from tqdm import tqdm

from keek_training.evaluation.baselines.protocol import Baseline, Parameters, Training
from keek_training.evaluation.cases import Cases
from keek_training.evaluation.metrics import per_user
from keek_training.evaluation.ranking import rank

log = logging.getLogger(__name__)

TUNED_BY: Final = "ndcg@10"
_MOST_CASES: Final = 3000


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best point of a baseline's grid."""

    baseline: Baseline
    parameters: Parameters
    ndcg_at_10: float
    """On the validation part."""


def tune(baselines: Sequence[Baseline], training: Training, validation: Cases, seed: int) -> list[Tuned]:
    """The best point of each grid by NDCG@10.

    Args:
        baselines: What is tuned; with a grid of one point, it is measured alone.
        training: Without the targets of the validation.
        validation: Some of its cases are drawn, where there are many.
        seed: Of that.
    """
    rows = np.random.default_rng(seed).permutation(len(validation))[:_MOST_CASES]
    cases = validation.take(np.sort(rows))
    tuned = []
    for baseline in baselines:
        best = Tuned(baseline, baseline.grid[0], -np.inf)
        for parameters in tqdm(baseline.grid, f"tuning {baseline.name}", leave=False, disable=None):
            found = per_user(rank(cases, baseline.fit(training, parameters)), cases.targets)
            ndcg = float(found.values[TUNED_BY].mean())
            log.info("%s %s: %s %.4f", baseline.name, dict(parameters), TUNED_BY, ndcg)
            if ndcg > best.ndcg_at_10:
                best = Tuned(baseline, parameters, ndcg)
        tuned.append(best)
    return tuned
