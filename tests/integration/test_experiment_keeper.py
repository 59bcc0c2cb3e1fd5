"""Who looks after experiments: harm stops an arm, weights follow what is measured, one server does it."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from keek_server.experiments.definitions import ExperimentDefinition
from keek_server.experiments.keeper import ExperimentKeeper
from keek_server.experiments.registry import ExperimentRegistry
from keek_server.experiments.reports import ExperimentReports, Report
from keek_server.storage.database import Database

ARMS = [{"name": name} for name in ("control", "slow", "good")]


@dataclass
class Reports:
    """Reports that say what a test wants; the real ones are made of logs."""

    figures: dict[str, Any]
    asked: list[str] = field(default_factory=list)

    async def make(self, experiment_id: str, *, window_hours: float) -> Report:
        assert window_hours > 0
        self.asked.append(experiment_id)
        return Report(self.figures, "", "")


def keeper(registry: ExperimentRegistry, reports: Reports, *, review_s: float = 1e-6) -> ExperimentKeeper:
    return ExperimentKeeper(registry, cast("ExperimentReports", reports), review_s=review_s)


def verdict(arm: str, said: str) -> dict[str, str]:
    return {"arm": arm, "verdict": said, "reason": f"{arm} is {said}"}


@pytest.fixture
async def registry(database: Database) -> ExperimentRegistry:
    """Runs two experiments, of which one is to be looked after."""
    registry = ExperimentRegistry(database)
    for name, rest in (
        ("watched", {"guardrails": {"latency_ratio": 1.5}, "adaptation": {"metric": "likes", "floor": 0.1}}),
        ("plain", {"layer": "other"}),
    ):
        given = {"experiment_id": name, "traffic_percent": 100.0, "arms": ARMS} | rest
        await registry.create(ExperimentDefinition.of(given))
        await registry.start(name)
    return registry


async def test_an_arm_that_does_harm_is_stopped_once_and_weights_follow(registry: ExperimentRegistry) -> None:
    weights = {"control": 0.2, "slow": 0.1, "good": 0.7}
    reports = Reports(
        {"guardrails": [verdict("slow", "stop"), verdict("good", "unknown")], "new_weights": weights}
    )
    # The review that stops an arm changes no weights; the next one does.
    await keeper(registry, reports).review()
    assert (await registry.get("watched")).weights_time_us is None
    await keeper(registry, reports).review()
    watched = await registry.get("watched")
    assert [(arm.name, arm.reason) for arm in watched.stopped_arms] == [("slow", "slow is stop")]
    assert {arm.name: arm.weight for arm in watched.definition.arms} == weights
    assert reports.asked == ["watched"] * 2
    plain = await registry.get("plain")
    assert (plain.stopped_arms, plain.weights_time_us) == ((), None)


async def test_nothing_is_done_where_nothing_is_known(registry: ExperimentRegistry) -> None:
    reports = Reports({"guardrails": [verdict("slow", "unknown")], "new_weights": None})
    await keeper(registry, reports).review()
    watched = await registry.get("watched")
    assert (watched.stopped_arms, watched.weights_time_us) == ((), None)


async def test_of_many_servers_one_looks(registry: ExperimentRegistry) -> None:
    reports = Reports({"guardrails": [], "new_weights": None})
    await asyncio.gather(*(keeper(registry, reports, review_s=60.0).review() for _ in range(5)))
    assert reports.asked == ["watched"]
