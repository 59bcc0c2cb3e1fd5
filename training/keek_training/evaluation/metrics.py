"""What a ranking is worth, user by user, and over all users.

Relevance is binary: a target is relevant, nothing else is. Definitions:

recall@k
    Found among the first k, over all targets of the user: also where there are more targets than k
    (`recall_k` of trec_eval).
ndcg@k
    DCG with gain 1 and discount log2(rank + 1), over that of the best order of the user's targets (Järvelin
    and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", 2002; `ndcg_cut_k` of trec_eval).
mrr
    1 / rank of the first target among the first `DEPTH`, 0 where none is there (`recip_rank` of trec_eval).
coverage@k
    Share of the catalogue that anybody's first k hold (Herlocker et al., "Evaluating collaborative
    filtering recommender systems", 2004).
popularity_lift@k
    How much more popular the first k are than the targets: the ratio of mean counts in training, less 1
    (after Abdollahpouri et al., "The Unfairness of Popularity Bias in Recommendation", 2019, who compare with
    what users had before; what they turned to next is there for new users as well).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from keek_training.evaluation.cases import Cases, Counted
from keek_training.evaluation.ranking import DEPTH, Ranked
from keek_training.features import BoolArray, Int64Array

KS: Final = (10, 20, 50)

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PerUser:
    """Metrics of the u users that have a target of the kind that is asked about."""

    cases: Int64Array
    """int64 [u]: their cases, ascending."""
    values: dict[str, Float64Array]
    """float64 [u], by name."""


def per_user(ranked: Ranked, targets: Counted) -> PerUser:
    """Recall and NDCG at each of `KS`, and MRR.

    Args:
        ranked: Of n cases.
        targets: Some or all of them.
    """
    relevant = targets.per_case(len(ranked))
    cases = np.flatnonzero(relevant)
    hit, relevant = hits(ranked, targets)[cases], relevant[cases]
    discounts = 1 / np.log2(np.arange(DEPTH) + 2)
    best = np.concatenate([[0.0], np.cumsum(discounts)])
    values = {}
    for k in KS:
        values[f"recall@{k}"] = hit[:, :k].sum(axis=1) / relevant
    for k in KS:
        values[f"ndcg@{k}"] = hit[:, :k] @ discounts[:k] / best[np.minimum(relevant, k)]
    values["mrr"] = np.where(hit.any(axis=1), 1 / (1 + hit.argmax(axis=1)), 0.0)
    return PerUser(cases, values)


def hits(ranked: Ranked, targets: Counted) -> BoolArray:
    """bool [n, DEPTH]: which places of n rankings hold one of the case's targets."""
    known = targets.where(targets.videos >= 0)
    span = int(max(ranked.max(initial=0), known.videos.max(initial=0))) + 1
    wanted = known.cases * span + known.videos
    keys = np.arange(len(ranked))[:, None] * span + ranked
    found: BoolArray = np.isin(keys, wanted) & (ranked >= 0)
    return found


def recall_curve(ranked: Ranked, targets: Counted) -> Float64Array:
    """float64 [DEPTH]: mean recall at 1, 2, ..."""
    relevant = targets.per_case(len(ranked))
    asked = np.flatnonzero(relevant)
    found = np.cumsum(hits(ranked, targets)[asked], axis=1) / relevant[asked, None]
    curve: Float64Array = found.mean(axis=0)
    return curve


def coverage(ranked: Ranked, k: int, video_count: int) -> float:
    """See above."""
    shown = np.unique(ranked[:, :k])
    return float((shown >= 0).sum() / video_count)


def popularity_lift(ranked: Ranked, k: int, cases: Cases) -> float | None:
    """See above; None where no target is known of training at all."""
    counts = cases.training_counts
    wanted = cases.targets.videos[cases.targets.videos >= 0]
    own = counts[wanted].mean() if len(wanted) else 0.0
    first = ranked[:, :k]
    shown = counts[first[first >= 0]]
    return float(shown.mean() / own - 1) if own and len(shown) else None
