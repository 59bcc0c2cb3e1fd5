"""The gates of a release that is built: measured in Triton, on the log, and against the live release."""

import asyncio
from collections.abc import Sequence

from keek_server.errors import UnavailableError
from keek_server.releases.manifest import GateResult
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import TOWERS, TowerContract
from keek_training.gates.compare import Side, compare
from keek_training.gates.evidence import Evidence
from keek_training.gates.golden import Golden, answers_of
from keek_training.gates.latency import Timed, Times, times_ms
from keek_training.gates.measured import Measured
from keek_training.gates.quality import known_requests, user_vectors
from keek_training.gates.requests import held_out_requests
from keek_training.gates.results import at_least, at_most, failed
from keek_training.gates.times import undisturbed_ms
from keek_training.gates.vectors import Moments, difference, vector_gates

_GOLDEN_DEADLINE_S = 60.0
_NORMS_KEPT = 100_000
_TRIES = 3
_RETRY_S = 0.5


async def measure(
    candidate: Measured,
    live: Measured | None,
    database: Database,
    towers: TowerClient,
    settings: Settings,
    evidence: Evidence | None = None,
) -> list[GateResult]:
    """Measures a release before it may serve.

    Args:
        candidate: The release, with the source that it was made from.
        live: The release that serves; None before the first one. Where Triton does not have its towers
            any more, what would be compared with it passes, and says so.
        database: Its log is read.
        towers: Asked for vectors and timed.
        settings: The bounds.
        evidence: Filled, for a report.

    Raises:
        UnavailableError: When Triton does not answer, which says nothing about the release.
        SetupError: When there are no golden vectors to compare with.
    """
    evidence = Evidence() if evidence is None else evidence
    live, absence = await _present(live, towers)
    results = await _parity(candidate, towers, settings)
    moments = await asyncio.to_thread(Moments.of, candidate.corpus.vectors)
    evidence.video_norms = moments.norms[:: 1 + len(moments.norms) // _NORMS_KEPT]
    results += vector_gates("video vectors of the corpus", moments, settings)
    results.append(_recall(candidate, settings))
    releases = [candidate] if live is None else [candidate, live]
    requests = await held_out_requests(database, settings.gate_users)
    requests = await asyncio.to_thread(known_requests, requests, releases)
    users = [await user_vectors(towers, release, requests) for release in releases]
    moments = Moments.of(users[0])
    evidence.user_norms = moments.norms
    if requests:
        results += vector_gates("user vectors of the log", moments, settings)
    sides = [Side(release, own) for release, own in zip(releases, users, strict=True)]
    results += await asyncio.to_thread(compare, sides, requests, settings, evidence, absence)
    for tower in TOWERS:
        results.append(await _latency(tower, releases, towers, settings, evidence))
    return results


async def _present(live: Measured | None, towers: TowerClient) -> tuple[Measured | None, str]:
    """The live release if Triton has its towers, and why there is none otherwise."""
    if live is None:
        return None, "there is no live release yet"
    for tower in TOWERS:
        for _ in range(_TRIES):
            # A Triton that is busy may be late with an answer.
            if await towers.has(tower, live.version(tower)):
                break
            await asyncio.sleep(_RETRY_S)
        else:
            return None, f"Triton does not have the live release's {tower.model} any more"
    return live, ""


async def _parity(candidate: Measured, towers: TowerClient, settings: Settings) -> list[GateResult]:
    if candidate.source is None:
        raise ValueError("a candidate comes with its source")
    results = []
    for tower in candidate.source.models:
        golden = Golden.of(candidate.source, tower)
        expected = await asyncio.to_thread(answers_of, candidate.source, tower, golden)
        found = await towers.vectors(
            tower, candidate.version(tower), golden.inputs, deadline_s=_GOLDEN_DEADLINE_S
        )
        text = f"{tower.model}: largest difference in Triton, over {len(expected)} golden inputs"
        results.append(at_most("parity", difference(found, expected), settings.gate_parity, text))
    return results


def _recall(candidate: Measured, settings: Settings) -> GateResult:
    report = candidate.index_report
    text = f"recall@100 of the index ({report.kind}) against exact search, of {report.recall_queries} users"
    return at_least("recall", report.recall_at_100, settings.gate_recall, text)


async def _latency(
    tower: TowerContract,
    releases: Sequence[Measured],
    towers: TowerClient,
    settings: Settings,
    evidence: Evidence,
) -> GateResult:
    try:
        times = await _times(tower, releases, towers)
    except UnavailableError as error:
        text = f"{tower.model}: it does not answer in Triton: {error}"
        return failed(at_most("latency_ms", 0, settings.gate_latency_ms, ""), text)
    names = (tower.model, f"{tower.model}, live")
    evidence.latencies_ms |= dict(zip(names, times, strict=False))
    own_ms, *live_ms = (undisturbed_ms(own.tolist()) for own in times)
    if not live_ms:
        text = f"{tower.model}: one row a call in Triton, without a live release to compare with"
        return at_most("latency_ms", own_ms, settings.gate_latency_ms, text)
    text = f"{tower.model}: one row a call takes {own_ms:.2f} ms in Triton"
    text += f", in the live release {live_ms[0]:.2f} ms"
    return at_most("latency", own_ms / live_ms[0], settings.gate_latency, text)


async def _times(tower: TowerContract, releases: Sequence[Measured], towers: TowerClient) -> list[Times]:
    """Of the candidate and of the live release, or of the candidate alone where the latter has gone."""
    timed = [Timed.of(release, tower) for release in releases]
    try:
        return await times_ms(towers, tower, timed)
    except UnavailableError:
        if len(timed) == 1:
            raise
        return await times_ms(towers, tower, timed[:1])
