"""How good a release's recommendations are, and how much they are those of another one."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from keek_server.feed.history import served_inputs
from keek_server.releases.release import Corpus
from keek_server.retrieval.index import Mask, Vectors
from keek_server.towers.client import TowerClient
from keek_server.towers.users import UserInputs, background_vectors
from keek_training.gates.measured import Measured
from keek_training.gates.requests import Request

Ranks = npt.NDArray[np.int64]

RECALL_AT: Final = 100
FEED: Final = 50
"""Videos of a feed that are compared."""
_TENTH: Final = 10
"""Of a small corpus, at most every tenth video counts as found: else anything would be."""
_ROWS_A_CHUNK: Final = 32_768
_DRAWS: Final = 20_000
_CONFIDENCE: Final = 0.975


@dataclass(frozen=True, slots=True)
class Ratio:
    """A candidate's share of hits over the live release's, on the same requests."""

    value: float
    """As counted; NaN when the live release has no hit."""
    upper: float
    """The end of its 95 % interval: above it lies 2.5 %. NaN when the live release has no hit."""

    @classmethod
    def of(cls, hits: Mask, live_hits: Mask) -> "Ratio":
        """
        Args:
            hits: bool [n], which requests the candidate finds.
            live_hits: bool [n], which the live release finds.

        The four outcomes of a request (found by both, by either, by none) have unknown shares; with
        Jeffreys' prior these follow a Dirichlet distribution, from which the ratio is drawn. Unlike a
        bootstrap it does not take five misses out of five for certain.
        """
        if not live_hits.any():
            return cls(float("nan"), float("nan"))
        counts = [np.sum(hits & live_hits), np.sum(hits & ~live_hits), np.sum(~hits & live_hits)]
        both, new, lost = np.random.default_rng(0).gamma(np.array(counts)[:, None] + 0.5, size=(3, _DRAWS))
        drawn = (both + new) / (both + lost)
        value = float(hits.sum() / live_hits.sum())
        return cls(value, max(value, float(np.quantile(drawn, _CONFIDENCE))))


def k_of(corpus: Corpus, most: int) -> int:
    """`most`, or a tenth of a small corpus."""
    return max(1, min(most, len(corpus.ids) // _TENTH))


def known_requests(requests: Sequence[Request], releases: Sequence[Measured]) -> list[Request]:
    """Those whose video, and something of whose history, every release knows."""
    fit = np.ones(len(requests), np.bool_)
    for release in releases:
        rows = release.corpus.ids.rows_of([request.target for request in requests])
        inputs = (_inputs(release, request) for request in requests)
        fit &= (rows >= 0) & np.fromiter((len(own.kinds) > 0 for own in inputs), np.bool_, len(requests))
    return [request for request, fits in zip(requests, fit, strict=True) if fits]


async def user_vectors(towers: TowerClient, release: Measured, requests: Sequence[Request]) -> Vectors:
    """The users' vectors at their requests, as the release's own tower gives them: float32 [n, DIMENSION].

    Raises:
        UnavailableError: Triton is gone, late or refuses.
    """
    inputs = await asyncio.to_thread(lambda: [_inputs(release, request) for request in requests])
    return await background_vectors(towers, release.user_tower, inputs)


def _inputs(release: Measured, request: Request) -> UserInputs:
    history = request.history[-release.history_length :]
    return served_inputs(release.corpus, request.user_id, history, request.now_us)


def ranks(corpus: Corpus, users: Vectors, requests: Sequence[Request]) -> Ranks:
    """How many videos that a user has not met score at least as high as the one they met next.

    Args:
        corpus: n videos; all are scored.
        users: float32 [m, DIMENSION].
        requests: m; the corpus holds their targets.

    Returns:
        int64 [m]: 0 is best; n where scores are not finite, and equal scores count as higher.
    """
    vectors = corpus.vectors
    targets = corpus.ids.rows_of([request.target for request in requests])
    own = np.einsum("md,md->m", users, vectors[targets])
    ahead = np.zeros(len(requests), np.int64)
    for start in range(0, len(vectors), _ROWS_A_CHUNK):
        ahead += np.count_nonzero(_at_least(vectors[start : start + _ROWS_A_CHUNK], users, own), axis=1)
    for place, request in enumerate(requests):
        seen = np.append(_rows(corpus, request), targets[place])
        ahead[place] -= np.count_nonzero(_at_least(vectors[seen], users[place : place + 1], own[place]))
    ahead[~np.isfinite(own)] = len(vectors)
    return np.maximum(ahead, 0)


def _at_least(vectors: Vectors, users: Vectors, scores: Vectors) -> Mask:
    # Two ways to the same dot product differ in the last digits.
    slack = 1e-5 * np.abs(scores) + 1e-12
    reached: Mask = users @ vectors.T >= (scores - slack).reshape(-1, 1)
    return reached


def feeds(release: Measured, users: Vectors, requests: Sequence[Request], size: int) -> list[list[str]]:
    """The first `size` personalised videos of each user, found as the server finds them: what they have met
    is left out."""
    met = [{entry.video_id for entry in request.history} for request in requests]
    widest = size + max(map(len, met), default=0)
    _, rows = release.index.search(users, widest)
    id_of = release.corpus.ids.id_of
    return [
        [id_ for id_ in (id_of(row) for row in own.tolist() if row >= 0) if id_ not in seen][:size]
        for own, seen in zip(rows, met, strict=True)
    ]


def overlaps(new: Sequence[Sequence[str]], live: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """float64 [users]: which share of each live feed the new one has again; users without one left out."""
    pairs = zip(new, live, strict=True)
    return np.array([len(set(own) & set(before)) / len(before) for own, before in pairs if before])


def _rows(corpus: Corpus, request: Request) -> npt.NDArray[np.int64]:
    rows = np.unique(corpus.ids.rows_of([entry.video_id for entry in request.history]))
    return rows[rows >= 0]
