"""The gates that compare a release with the live one, on what users did."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keek_server.releases.manifest import GateResult
from keek_server.retrieval.index import Vectors
from keek_server.settings import Settings
from keek_training.gates.evidence import Evidence
from keek_training.gates.measured import Measured
from keek_training.gates.quality import FEED, RECALL_AT, Ratio, feeds, k_of, overlaps, ranks
from keek_training.gates.requests import Request
from keek_training.gates.results import at_least, not_measurable


@dataclass(frozen=True, slots=True)
class Side:
    """One release, with the vectors that its user tower gives the sampled users."""

    release: Measured
    users: Vectors
    """float32 [n, DIMENSION]."""


def compare(
    sides: Sequence[Side],
    requests: Sequence[Request],
    settings: Settings,
    evidence: Evidence,
    absence: str,
) -> list[GateResult]:
    """Quality on the held-out tail of the log, and overlap of feeds.

    Args:
        sides: The candidate, and behind it the live release if there is one.
        requests: n requests, which all sides know.
        settings: The bounds.
        evidence: Filled.
        absence: Why there is no live release, for people.
    """
    return [
        _quality(sides, requests, settings, evidence, absence),
        _overlap(sides, requests, settings, evidence, absence),
    ]


def _quality(
    sides: Sequence[Side],
    requests: Sequence[Request],
    settings: Settings,
    evidence: Evidence,
    absence: str,
) -> GateResult:
    unmeasured = at_least("quality", 0, settings.gate_quality, "")
    if not requests:
        return not_measurable(unmeasured, "no user of the log's tail has a video to hold out")
    k = min(k_of(side.release.corpus, RECALL_AT) for side in sides)
    found = [ranks(side.release.corpus, side.users, requests) for side in sides]
    evidence.ranks = found[0].astype(np.float64)
    if len(found) > 1:
        evidence.live_ranks = found[1].astype(np.float64)
    hits = [own < k for own in found]
    text = f"recall@{k} of {len(requests)} held-out videos is {hits[0].mean():.3f}"
    if len(sides) == 1:
        random = k / len(sides[0].release.corpus.ids)
        return not_measurable(unmeasured, f"{absence}; {text}, in random order {random:.3f}")
    text += f", of the live release {hits[1].mean():.3f}"
    ratio = Ratio.of(hits[0], hits[1])
    if np.isnan(ratio.value):
        return not_measurable(unmeasured, f"{text}, which is nothing to compare with")
    text += f": {ratio.value:.3f} of it, at most {ratio.upper:.3f} with 97.5 % confidence, which counts"
    return at_least("quality", ratio.upper, settings.gate_quality, text)


def _overlap(
    sides: Sequence[Side],
    requests: Sequence[Request],
    settings: Settings,
    evidence: Evidence,
    absence: str,
) -> GateResult:
    unmeasured = at_least("overlap", 0, settings.gate_overlap, "")
    if len(sides) == 1:
        return not_measurable(unmeasured, absence)
    size = min(k_of(side.release.corpus, FEED) for side in sides)
    new, live = (feeds(side.release, side.users, requests, size) for side in sides)
    shares = overlaps(new, live)
    evidence.overlaps = shares
    if not len(shares):
        return not_measurable(unmeasured, "no sampled user has a personalised feed in the live release")
    text = f"of the live release's first {size} personalised videos, mean over {len(shares)} users"
    same, other = np.mean(shares == 1), np.mean(shares == 0)
    text += f"; {same:.0%} of them get all of these again, {other:.0%} none"
    return at_least("overlap", float(shares.mean()), settings.gate_overlap, text)
