"""How well pages are ordered: NDCG against what their users did."""

import numpy as np

from keek_server.experiments.logs import FloatArray
from keek_training.ranker.pages import Pages


def mean_ndcg(pages: Pages, scores: FloatArray, examined: FloatArray) -> float:
    """The mean NDCG of n pages in the order of some scores.

    What a user did with a video counts by how likely a slot like its own is looked at (Joachims, Swaminathan,
    Schnabel, "Unbiased Learning-to-Rank with Biased Feedback", WSDM 2017): otherwise whatever order was shown
    would be found good.

    Args:
        pages: Each with a reward above 0.
        scores: float [n, width]; equal ones are as likely in either order.
        examined: float [positions]: how likely a slot is looked at, beside the first one; above 0.
    """
    places = np.minimum(pages.positions, len(examined) - 1)
    gains = np.where(pages.mask > 0, pages.rewards / examined[places], 0.0)
    hidden = np.where(pages.mask > 0, scores, -np.inf)
    return float((_dcg(gains, hidden) / _dcg(gains, np.where(pages.mask > 0, gains, -np.inf))).mean())


def _dcg(gains: FloatArray, scores: FloatArray) -> FloatArray:
    """[n]: videos of equal scores share the discounts of their places."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranked, sorted_ = np.take_along_axis(gains, order, 1), np.take_along_axis(scores, order, 1)
    discounts = np.broadcast_to(1.0 / np.log2(np.arange(gains.shape[1]) + 2.0), gains.shape)
    # The number of the group of equal scores that each place belongs to, over all pages.
    begins = np.ones(gains.shape, np.bool_)
    begins[:, 1:] = sorted_[:, 1:] != sorted_[:, :-1]
    groups = np.cumsum(begins.reshape(-1)).reshape(gains.shape) - 1
    shared = np.bincount(groups.reshape(-1), discounts.reshape(-1)) / np.bincount(groups.reshape(-1))
    summed: FloatArray = (ranked * shared[groups]).sum(axis=1)
    return summed
