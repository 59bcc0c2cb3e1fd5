"""A release that is built is measured in a real Triton, on a real log and against the live release."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import sqlalchemy as sa
from embedded_towers import publish
from gate_towers import slow, tag_tower, user_tower, written
from onnx import ModelProto
from tritonclient.grpc.aio import InferenceServerClient

from keek_server.embedded import EmbeddedStack
from keek_server.feed.history import history_inputs
from keek_server.interactions.history import HistoryEntry
from keek_server.interactions.kinds import KINDS
from keek_server.releases.manifest import GateResult
from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.index import IndexReport
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.storage.tables import interactions
from keek_server.towers.client import TowerClient, open_towers
from keek_server.towers.contract import DIMENSION, USER_TOWER, VIDEO_TOWER, TowerContract
from keek_server.towers.control import control_headers
from keek_server.towers.features import Tensors, video_features
from keek_server.towers.users import user_batch
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import import_dataset
from keek_training.gates.evidence import Evidence
from keek_training.gates.measure import measure
from keek_training.gates.measured import Measured
from keek_training.gates.quality import known_requests, user_vectors
from keek_training.gates.report import write_report
from keek_training.gates.requests import POSITIVE, held_out_requests
from keek_training.gates.verdict import failures
from keek_training.publishing.catalogue import Catalogue, read_catalogue
from keek_training.publishing.indexes import build_corpus
from keek_training.publishing.source import TowerSource

pytestmark = pytest.mark.usefixtures("unhurried_triton")

SYNTH = "synth:users=300,videos=400,interactions=9000,end=2026-01-01"
LIVE, ROTATED, DESTROYED, OTHER, SLOW = range(7001, 7006)
HISTORY = 20
RNG = np.random.default_rng(3)
TABLE = RNG.normal(size=(997, DIMENSION)).astype(np.float32)
ROTATION = np.linalg.qr(RNG.normal(size=(DIMENSION, DIMENSION)))[0].astype(np.float32)


def towers_of(version: int) -> tuple[ModelProto, ModelProto]:
    """What each version is made of."""
    other = np.random.default_rng(4).normal(size=TABLE.shape).astype(np.float32)
    return {
        LIVE: (user_tower(), tag_tower(TABLE)),
        # The same to all who use both towers of it.
        ROTATED: (user_tower(), tag_tower(TABLE @ ROTATION)),
        # As if the user tower were that of another release.
        DESTROYED: (user_tower(ROTATION), tag_tower(TABLE)),
        OTHER: (user_tower(), tag_tower(other)),
        SLOW: (slow(120), tag_tower(TABLE)),
    }[version]


@dataclass(frozen=True)
class Bench:
    """All that `measure` needs."""

    database: Database
    towers: TowerClient
    settings: Settings
    catalogue: Catalogue
    folder: Path

    async def release(self, version: int) -> Measured:
        """A version, embedded through Triton."""
        all_ = self.catalogue
        features = video_features(
            all_.video_ids, all_.owner_ids, all_.tags, all_.durations_s, all_.clip_vectors
        )
        vectors = await self.towers.vectors(VIDEO_TOWER, version, features, deadline_s=30.0)
        return self.built(version, vectors)

    def built(self, version: int, vectors: npt.NDArray[np.float32]) -> Measured:
        """A version with these vectors of its videos."""
        corpus = build_corpus(self.catalogue, vectors)
        index, report = build_index(vectors, vectors[:50], IndexOptions(exact_below=1000, recall_target=0.99))
        source = self.source(version)
        return Measured(version, version, HISTORY, corpus, index, report, source)

    def source(self, version: int) -> TowerSource:
        folder = self.folder / str(version)
        folder.mkdir(exist_ok=True)
        return written(folder, *towers_of(version))

    async def results(
        self, candidate: Measured, live: Measured | None, evidence: Evidence | None = None, **bounds: float
    ) -> list[GateResult]:
        settings = self.settings.model_copy(update=bounds)
        return await measure(candidate, live, self.database, self.towers, settings, evidence)


@pytest.fixture(scope="module")
async def bench(stack: EmbeddedStack, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    """All versions in Triton, and a log of its own."""
    folder = tmp_path_factory.mktemp("gates")
    for version in range(LIVE, SLOW + 1):
        for contract, model in zip((USER_TOWER, VIDEO_TOWER), towers_of(version), strict=True):
            publish(model, stack.settings.model_repository, contract.model, version)
    headers = control_headers(stack.settings.triton_control_token)
    async with InferenceServerClient(stack.settings.triton_url) as client:
        for contract in (USER_TOWER, VIDEO_TOWER):
            await client.load_model(contract.model, headers=headers, client_timeout=60.0)
    settings = stack.settings.model_copy(
        update={"data_dir": folder, "database_url": f"sqlite+aiosqlite:///{folder / 'keek.db'}"}
    )
    async with open_database(settings) as database, open_towers(settings) as towers:
        await import_dataset(database, open_dataset(SYNTH))
        yield Bench(database, towers, settings, await read_catalogue(database), folder)


@pytest.fixture(scope="module")
async def live(bench: Bench) -> Measured:
    return await bench.release(LIVE)


def by_name(results: list[GateResult]) -> dict[str, GateResult]:
    return {result.name: result for result in results}


async def test_the_same_model_rotated_passes_and_recommends_the_same(
    bench: Bench, live: Measured, tmp_path: Path
) -> None:
    evidence = Evidence()
    results = await bench.results(await bench.release(ROTATED), live, evidence, gate_overlap=0.95)
    assert failures(results) == []
    measured = by_name(results)
    assert set(measured) == {"parity", "max_norm", "spread", "recall", "quality", "overlap", "latency"}
    assert measured["quality"].value == pytest.approx(1, abs=0.25)
    assert measured["quality"].detail.startswith("recall@40 of ")
    assert measured["overlap"].value == pytest.approx(1, abs=0.02)
    assert len(evidence.overlaps) == len(evidence.ranks) == len(evidence.live_ranks) > 200
    assert set(evidence.latencies_ms) == {f"{t}_tower{s}" for t in ("user", "video") for s in ("", ", live")}
    page = write_report(tmp_path, "r2", "files", results, "r1", evidence=evidence).read_text()
    assert page.count("<img") == 5


async def test_users_are_asked_for_in_calls_that_keep_no_feed_waiting(
    bench: Bench, live: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = known_requests(await held_out_requests(bench.database, 300), [live])[:40]
    users = [
        history_inputs(live.corpus, request.user_id, request.history[-HISTORY:], request.now_us)
        for request in requests
    ]
    together = await bench.towers.vectors(USER_TOWER, LIVE, user_batch(users), deadline_s=30.0)
    rows: list[int] = []
    vectors = bench.towers.vectors

    async def counted(tower: TowerContract, version: int, features: Tensors, **named: Any) -> Any:
        rows.append(len(features["user"]))
        return await vectors(tower, version, features, **named)

    monkeypatch.setattr(bench.towers, "vectors", counted)
    np.testing.assert_allclose(await user_vectors(bench.towers, live, requests), together, rtol=1e-5)
    assert rows == [16, 16, 8]


async def test_the_same_log_gives_the_same_verdict(bench: Bench, live: Measured) -> None:
    first, second = [by_name(await bench.results(live, live)) for _ in range(2)]
    for name in ("parity", "max_norm", "spread", "recall", "quality", "overlap"):
        assert first[name] == second[name]


async def test_towers_whose_spaces_do_not_fit_are_refused_by_quality(bench: Bench, live: Measured) -> None:
    results = await bench.results(await bench.release(DESTROYED), live)
    (refusal,) = failures(results)
    assert refusal.name == "quality"
    assert refusal.value is not None
    assert refusal.value < bench.settings.gate_quality


async def test_other_feeds_are_refused_where_overlap_is_asked_for(bench: Bench, live: Measured) -> None:
    candidate = await bench.release(OTHER)
    assert failures(await bench.results(candidate, live)) == []
    (refusal,) = failures(await bench.results(candidate, live, gate_overlap=0.95))
    assert refusal.name == "overlap"
    assert "first 40 personalised videos" in refusal.detail


async def test_a_tower_that_triton_answers_slowly_is_refused(bench: Bench, live: Measured) -> None:
    candidate = await bench.release(SLOW)
    usual = Settings(data_dir=bench.folder).gate_latency
    refused = failures(await bench.results(candidate, live, gate_latency=usual))
    # Beside a busy neighbour, the other tower may seem to be slow as well.
    (refusal,) = [refusal for refusal in refused if refusal.detail.startswith("user_tower: ")]
    assert refusal.name == "latency"
    refused = failures(await bench.results(live, None, gate_latency_ms=0.01))
    assert [refusal.name for refusal in refused] == ["latency_ms", "latency_ms"]


async def test_other_answers_than_those_of_the_files_are_refused(bench: Bench, live: Measured) -> None:
    candidate = replace(live, source=bench.source(OTHER))
    (refusal,) = failures(await bench.results(candidate, None))
    assert refusal.name == "parity"
    assert refusal.detail.startswith("video_tower: ")


async def test_an_index_that_finds_too_little_is_refused(bench: Bench, live: Measured) -> None:
    report = IndexReport("ivf_flat", 400, 20, 1, 0.5, 50, 0.1)
    (refusal,) = failures(await bench.results(replace(live, index_report=report), None))
    assert (refusal.name, refusal.value, refusal.bound) == ("recall", 0.5, 0.95)


@pytest.mark.parametrize("value", [0.0, np.nan, 1e6])
async def test_vectors_of_the_corpus_that_say_nothing_are_refused(
    bench: Bench, live: Measured, value: float
) -> None:
    vectors = np.array(live.corpus.vectors)
    vectors[:] = value
    candidate = replace(live, corpus=build_corpus(bench.catalogue, vectors))
    refused = failures(await bench.results(candidate, live))
    names = {refusal.name for refusal in refused}
    assert names >= ({"spread", "quality"} if value == 0 else {"max_norm", "spread", "quality"})
    assert any(refusal.detail.startswith("video vectors of the corpus: ") for refusal in refused)


@pytest.mark.parametrize("is_first", [True, False])
async def test_without_a_live_release_what_cannot_be_compared_passes_and_says_so(
    bench: Bench, live: Measured, is_first: bool
) -> None:
    gone = None if is_first else replace(live, user_tower=7999)
    results = await bench.results(await bench.release(DESTROYED), gone)
    assert failures(results) == []
    measured = by_name(results)
    for name in ("quality", "overlap"):
        assert (measured[name].value, measured[name].passed) == (None, True)
        assert ("no live release yet" if is_first else "does not have the live release's user_tower") in (
            measured[name].detail
        )
    assert "latency" not in measured
    assert measured["latency_ms"].value is not None


async def test_a_log_without_users_to_measure_with_refuses_nothing(
    bench: Bench, live: Measured, tmp_path: Path
) -> None:
    async with open_database(Settings(data_dir=tmp_path)) as empty:
        results = await measure(live, live, empty, bench.towers, bench.settings)
    assert failures(results) == []
    assert by_name(results)["quality"].detail == "no user of the log's tail has a video to hold out"


async def test_the_same_requests_are_held_out_on_every_database(database: Database) -> None:
    await import_dataset(database, open_dataset("synth:users=60,videos=80,interactions=1500,end=2026-01-01"))
    requests = await held_out_requests(database, 20)
    assert len({request.user_id for request in requests}) == len(requests) == 20
    assert requests == await held_out_requests(database, 20)
    for request in requests:
        own = await _log(database, request.user_id)
        place = len(request.history)
        assert list(request.history) == own[:place]
        assert (own[place].video_id, own[place].event_time_us) == (request.target, request.now_us)
        assert own[place].kind in POSITIVE
        assert request.target not in {entry.video_id for entry in own[:place]}
        met = {entry.video_id for entry in own[: place + 1]}
        later = [entry for entry in own[place + 1 :] if entry.video_id not in met]
        assert not later or later[0].kind not in POSITIVE


async def _log(database: Database, user_id: str) -> list[HistoryEntry]:
    c = interactions.c
    query = sa.select(c.video_id, c.kind, c.event_time_us).where(c.user_id == user_id).order_by(c.seq)
    async with database.read() as connection:
        rows = (await connection.execute(query)).all()
    return [HistoryEntry(row.video_id, KINDS[row.kind], row.event_time_us) for row in rows]
