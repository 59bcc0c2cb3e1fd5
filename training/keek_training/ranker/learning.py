"""From the log to a ranker in the folder of the run whose towers a release has."""

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from keek_server.clock import now_us
from keek_server.errors import FailedPreconditionError, SetupError
from keek_server.experiments.reading import read_feeds
from keek_server.experiments.totals import slot_rewards
from keek_server.releases.registry import ReleaseRegistry
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.towers.contract import RANKER
from keek_training.backend import keras
from keek_training.contract_check import check_contract
from keek_training.export import convert, describe, difference
from keek_training.golden import golden_pages
from keek_training.publishing.source import TowerSource
from keek_training.ranker.fit import Fitted, fit_ranker
from keek_training.ranker.model import RankerModel
from keek_training.ranker.pages import Pages, Shown, read_pages, videos_of
from keek_training.ranker.towers import with_towers
from keek_training.replay_target import opened_target
from keek_training.runs import Run
from keek_training.sessions import open_session

_TIMED_RUNS: Final = 100


async def learn_ranker(
    settings: Settings,
    *,
    window_us: int,
    release_id: str | None = None,
    since_us: int | None = None,
    run: Run | None = None,
) -> tuple[Run, dict[str, Any]]:
    """Trains a ranker for a release's towers by the feeds that were served since it was made, which they have
    not learnt from, and puts it into their run: who publishes that run next publishes the ranker with it.

    Args:
        settings: Where everything is, and the bounds.
        window_us: How long after a feed an interaction may come that it caused.
        release_id: The release; the active one by default.
        since_us: Feeds from when on; since the release was made by default.
        run: Another exported run, whose towers the ranker is for; popularity is still the release's.

    Returns:
        The run, and the report, also written as ranker.json: `refused` says why it must not serve; empty
        when it may.

    Raises:
        FailedPreconditionError: When there are too few pages, or the release has no files.
        NotFoundError: When there is no such release.
        SetupError: When no release is active, or it came from no run that is here.
        UnavailableError: When the database or Milvus fails.
    """
    async with open_database(settings) as database:
        chosen = release_id or await ReleaseRegistry(database).active()
        if chosen is None:
            raise SetupError("no release is active: publish one first, and let it serve feeds")
        shown, run, since = await _shown(chosen, run, database, settings, since_us, window_us)
    if len(shown) < settings.ranker_min_pages:
        raise FailedPreconditionError(
            f"the log has {len(shown):,} pages that something came of and release {chosen} knows, fewer than"
            f" {settings.ranker_min_pages:,} (ranker_min_pages)"
        )
    fitted = await asyncio.to_thread(fit_ranker, Pages.of(shown))
    report = {"release_id": chosen, "since_us": since} | _report(fitted, settings)
    await asyncio.to_thread(write_ranker, fitted.model, run, report)
    return run, report


async def _shown(
    release_id: str,
    run: Run | None,
    database: Database,
    settings: Settings,
    since_us: int | None,
    window_us: int,
) -> tuple[list[Shown], Run, int]:
    async with opened_target(release_id, database, settings) as target:
        manifest = target.release.manifest
        since = manifest.create_time_us if since_us is None else since_us
        logged = await read_feeds(database, since, now_us(), window_us=window_us)
        rewards = slot_rewards(logged.exposures, logged.interactions, window_us, settings.interaction_weights)
        if run is None:
            run = _run_of(manifest.source, release_id, settings)
        elif run.name != manifest.source:
            videos = await videos_of(logged, rewards, database)
            target = await with_towers(target, TowerSource.of_run(run), videos, database)
        return await read_pages(target, logged, rewards, database, settings), run, since


def _run_of(source: str, release_id: str, settings: Settings) -> Run:
    try:
        run = Run.named(source, settings)
        run.read_export()
    except SetupError as error:
        raise SetupError(
            f"release {release_id} came from {source!r}, and a ranker goes into the run that has its towers:"
            f" {error}"
        ) from error
    return run


def _report(fitted: Fitted, settings: Settings) -> dict[str, Any]:
    trained, validated, judged = fitted.page_counts
    least = settings.gate_ranker_ndcg * fitted.ndcg_dot_product
    refused = ""
    # Written so that NaN is refused as well.
    if not fitted.ndcg >= least:
        refused = (
            f"on the latest {judged:,} pages its NDCG is {fitted.ndcg:.4f}, that of the dot product's order"
            f" {fitted.ndcg_dot_product:.4f}: below {settings.gate_ranker_ndcg:g} of it"
        )
    return {
        "refused": refused,
        "ndcg": fitted.ndcg,
        "ndcg_dot_product": fitted.ndcg_dot_product,
        "pages": {"train": trained, "validation": validated, "latest": judged},
        "epochs": fitted.epochs,
        "examined": [round(each, 4) for each in fitted.examined.tolist()],
    }


def write_ranker(model: RankerModel, run: Run, report: dict[str, Any]) -> None:
    """Exports a ranker into a run's folder, with what there is to say of it, and what is measured here.

    Raises:
        SetupError: When ONNX and Keras differ too much; the run has no ranker then.
    """
    # What is half replaced is none.
    run.forget_ranker()
    inputs = golden_pages()
    expected = np.asarray(keras.ops.convert_to_numpy(model(inputs)))
    with run.writing(run.ranker) as aside:
        convert(model, RANKER, aside)
        check_contract(aside, RANKER)
        worst = difference(aside, RANKER, inputs, expected)
    answers = {f"{RANKER.model}/{name}": values for name, values in inputs.items()}
    with run.writing(run.ranker_golden) as aside:
        np.savez(aside, **answers, **{f"{RANKER.model}/{RANKER.output.name}": expected})  # type: ignore[arg-type]
    report |= describe(run.ranker, worst) | {"ms_per_page": _ms_per_page(run.ranker)}
    run.write_ranker(report)


def _ms_per_page(path: Path) -> float:
    """Median time of one page with sixty candidates, on one thread."""
    session = open_session(path, 1)
    inputs = {name: values[1:2] for name, values in golden_pages().items()}
    times = []
    for _ in range(_TIMED_RUNS):
        started = time.perf_counter()
        session.run(None, inputs)
        times.append(time.perf_counter() - started)
    return round(statistics.median(times) * 1000, 4)
