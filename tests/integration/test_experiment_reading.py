"""The logs of an experiment as arrays, and the report that the command makes of them."""

import asyncio
import json
import math
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keek_server.clock import now_us
from keek_server.experiments import durations
from keek_server.experiments.definitions import ExperimentDefinition
from keek_server.experiments.logs import Pooled
from keek_server.experiments.reading import BEFORE_US, read_experiment, read_feeds
from keek_server.experiments.registry import Experiment, ExperimentRegistry
from keek_server.experiments.totals import user_totals
from keek_server.feed.types import FeedSource
from keek_server.interactions.kinds import InteractionKind
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.storage.partitions import MonthlyPartitions, month_start_us
from keek_server.storage.tables import exposures, interactions
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.video import Video

P, T, POPULAR = map(int, (FeedSource.PERSONALISED, FeedSource.TRENDING, FeedSource.POPULAR))
SECOND_US = 1_000_000


@pytest.fixture
async def experiment(database: Database) -> Experiment:
    registry = ExperimentRegistry(database)
    given: dict[str, Any] = {
        "experiment_id": "mix",
        "traffic_percent": 100.0,
        "arms": [{"name": "control"}, {"name": "half"}],
        "overrides": {"tester": "half"},
    }
    await registry.create(ExperimentDefinition.of(given))
    return await registry.start("mix")


async def show(
    database: Database, user_id: str, time_us: int, arms: Any, slate: list[Any], pool: Any = None
) -> None:
    await MonthlyPartitions(database, exposures.c.serve_time_us).cover(month_start_us(time_us))
    row = {
        "user_id": user_id,
        "release_id": "r1",
        "serve_time_us": time_us,
        "slate": slate,
        "pool": pool,
        "arms": arms,
        "first_slot": 10,
        "slot_count": 4,
        "elapsed_us": 2500,
        "degraded": user_id == "u2",
    }
    async with database.write() as connection:
        await connection.execute(exposures.insert(), [row])


async def like(database: Database, user_id: str, video_id: str, time_us: int) -> None:
    await act(database, user_id, video_id, time_us, InteractionKind.LIKE)


async def act(
    database: Database,
    user_id: str,
    video_id: str,
    time_us: int,
    kind: InteractionKind,
    watched_ms: int | None = None,
) -> None:
    await MonthlyPartitions(database, interactions.c.record_time_us).cover(month_start_us(time_us))
    row = {
        "event_id": uuid.uuid4(),
        "user_id": user_id,
        "video_id": video_id,
        "kind": kind,
        "event_time_us": time_us,
        "record_time_us": time_us,
        "region": "",
        "tags": [],
        "watched_ms": watched_ms,
    }
    async with database.write() as connection:
        await connection.execute(interactions.insert(), [row])


async def test_feeds_of_the_arms_their_users_before_and_what_they_did_are_read(
    database: Database, experiment: Experiment
) -> None:
    start_us = experiment.start_time_us
    assert start_us is not None
    explored = [["v1", P, 0.9, 0.95], ["v2", T, 0.5, 0.05], ["v3", POPULAR, 0.1, None]]
    await show(database, "u1", start_us - SECOND_US, None, [["v9", P, 0.9]])
    await show(database, "stranger", start_us - SECOND_US, None, [["v9", P, 0.9]])
    await show(database, "u1", start_us + 1, [["other", "x"], ["mix", "half"]], explored)
    await show(database, "u2", start_us + 2, [["mix", "control"]], [["v1", T, 0.2], ["v4", POPULAR, 0.1]])
    await show(database, "u3", start_us + 3, [["other", "x"]], explored)
    await show(database, "tester", start_us + 4, [["mix", "half"]], explored)
    await like(database, "u1", "v2", start_us + 10)
    await like(database, "u1", "v8", start_us - BEFORE_US - 1)
    await like(database, "u3", "v2", start_us + 10)
    logged = await read_experiment(database, experiment, window_us=SECOND_US)
    shown = logged.exposures
    assert [logged.user_ids[code] for code in shown.users] == ["u1", "u2", "u1"]
    assert shown.arms.tolist() == [1, 0, -1]
    assert np.diff(shown.offsets).tolist() == [3, 2, 1]
    assert [logged.video_ids[code] for code in shown.videos] == ["v1", "v2", "v3", "v1", "v4", "v9"]
    assert shown.firsts.tolist() == [10, 10, 10]
    expected = [0.95, 0.05, math.nan, 1.0, math.nan, 1.0]
    np.testing.assert_allclose(shown.source_propensities, expected, rtol=1e-6)
    assert logged.health.latencies_ms.tolist() == [2.5, 2.5, 2.5]
    assert logged.health.asked.tolist() == [4, 4, 4]
    assert logged.health.is_degraded.tolist() == [False, True, False]
    done = logged.interactions
    assert [
        (logged.user_ids[u], logged.video_ids[v]) for u, v in zip(done.users, done.videos, strict=True)
    ] == [("u1", "v2")]

    whole = await read_feeds(database, start_us, start_us + SECOND_US, window_us=0)
    assert len(whole.exposures) == 4
    of_arm = await read_feeds(
        database, start_us, start_us + SECOND_US, window_us=0, experiment_id="mix", arm="half"
    )
    assert [of_arm.user_ids[code] for code in of_arm.exposures.users] == ["u1", "tester"]
    # Rows of before know nothing of videos that were drawn: what was shown was certain.
    assert whole.exposures.video_propensities.tolist() == [1.0] * len(whole.exposures.videos)
    assert whole.pools == [None] * 4


async def test_how_long_videos_were_watched_is_read_beside_their_durations(
    database: Database, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(durations, "_VIDEOS_A_PAGE", 2)
    start_us = experiment.start_time_us
    assert start_us is not None
    catalogue = Catalogue(database)
    await catalogue.put([Video(f"v{i}", "", [], float(i), "", 0) for i in range(6)])
    await catalogue.delete("v3", "")
    await show(database, "u1", start_us + 1, [["mix", "half"]], [[f"v{i}", P, 0.5] for i in range(6)])
    view, skip = InteractionKind.VIEW, InteractionKind.SKIP
    await act(database, "u1", "v5", start_us + 2, view)
    await act(database, "u1", "v4", start_us + 3, view, 1_500)
    await act(database, "u1", "v3", start_us + 4, skip, 0)  # deleted since
    await act(database, "u1", "v1", start_us + 4, skip, 0)
    await act(database, "u1", "v2", start_us + 5, skip, 86_400_000)
    await act(database, "u1", "v0", start_us + 6, view, 9)  # of unknown duration
    await act(database, "u1", "gone", start_us + 7, view, 9)  # of no video that is known
    logged = await read_experiment(database, experiment, window_us=SECOND_US)
    done = logged.interactions
    assert [logged.video_ids[code] for code in done.videos] == [*("v5", "v4", "v3", "v1", "v2", "v0", "gone")]
    np.testing.assert_array_equal(done.watched_s, [np.nan, 1.5, 0.0, 0.0, 86_400.0, 0.009, 0.009])
    np.testing.assert_array_equal(done.durations_s, [np.nan, 4.0, np.nan, 1.0, 2.0, np.nan, np.nan])
    totals = user_totals(logged.exposures, done, start_us=start_us, window_us=SECOND_US)
    assert (totals.sums["watched_s"].tolist(), totals.sums["watchable_s"].tolist()) == ([3.5], [7.0])


async def test_what_videos_were_drawn_among_is_read(database: Database) -> None:
    slate = [["v1", T, 0.9, 1.0], ["v3", P, 0.5, 1.0, 0.05], ["v4", P, 0.4, 1.0], ["v2", P, 0.6, 1.0, 0.95]]
    await show(database, "u1", now_us(), None, [["v5", P, 0.9]])
    await show(database, "u1", now_us(), None, slate, [3, 1, "v8", ["v9", 3]])
    logged = await read_feeds(database, 0, now_us(), window_us=0)
    shown = logged.exposures
    np.testing.assert_allclose(shown.video_propensities, [1, 1, 0.05, 1, 0.95], rtol=1e-6)
    assert logged.pools[0] is None
    assert logged.pools[1] is not None
    code = {video_id: number for number, video_id in enumerate(logged.video_ids)}
    assert logged.pools[1] == [
        Pooled(code["v2"], 3, is_shown=True),
        Pooled(code["v3"], 1, is_shown=True),
        Pooled(code["v8"], 3, is_shown=False),
        Pooled(code["v9"], 2, is_shown=False),
    ]


async def test_the_command_prints_a_table_json_and_a_page(
    database: Database, settings: Settings, experiment: Experiment, tmp_path: Path
) -> None:
    start_us = experiment.start_time_us
    assert start_us is not None
    rng = np.random.default_rng(1)
    for number in range(60):
        arm = ("control", "half")[number % 2]
        await show(database, f"u{number}", now_us(), [["mix", arm]], [[f"v{number}", P, 0.5]])
        if rng.random() < (0.2, 0.8)[number % 2]:
            await like(database, f"u{number}", f"v{number}", now_us())
    page = tmp_path / "report.html"

    async def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "keek_server", "experiments", "report", *arguments],
            env={**os.environ, "KEEK_DATABASE_URL": settings.database_url},
            capture_output=True,
            text=True,
            timeout=120,
        )

    figures = json.loads((await run("mix", "--json", "--html", str(page))).stdout)
    assert [arm["user_count"] for arm in figures["arms"]] == [30, 30]
    (likes,) = (measure for measure in figures["measures"] if measure["name"] == "likes")
    assert likes["arms"][1]["difference"]["p_value"] < 0.01
    assert "mix" in (await run("mix")).stdout
    assert page.read_text("utf-8").startswith("<!")
    for wrong, code in (("draft", 1), ("nobody", 3)):
        if wrong == "draft":
            given = experiment.definition.model_dump(mode="json") | {"experiment_id": "draft"}
            await ExperimentRegistry(database).create(ExperimentDefinition.of(given))
        done = await run(wrong)
        assert done.returncode == code
        assert wrong in done.stderr
