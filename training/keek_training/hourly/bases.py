"""Which run the next fine-tuning starts from: the one that serves."""

import logging
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.log import InteractionLog
from keek_server.releases.plan import Plan, ReleaseState
from keek_server.releases.registry import ReleaseRegistry
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.storage.tables import activations, interactions, releases
from keek_server.videos.changes import ChangeFeed
from keek_training.hourly.reading import next_clip_model
from keek_training.hourly.state import LogRange, Refusal, Round, Step
from keek_training.runs import Run

logger = logging.getLogger(__name__)

PREFIX = "hourly-"
"""How the names of the job's own runs begin."""

_LATEST = "latest"


async def choose_base(database: Database, settings: Settings, given: str | None) -> Run | None:
    """The run of the release that serves, which after a rollback is not the newest one.

    Before the first release it is the run `latest`; None when that was never trained, or was trained
    with another CLIP than the next release will have.

    Args:
        database: Holds the registry.
        settings: Say where runs are.
        given: The name of the run that is taken instead.

    Raises:
        SetupError: When what serves, or what is given, is none of the runs here.
    """
    if given is not None:
        run = Run.named(given, settings)
        run.read_metrics()
        return run
    release_id = await ReleaseRegistry(database).active()
    run = Run.named(_LATEST, settings)
    if release_id is not None:
        source = (await ReleaseRegistry(database).get(release_id)).manifest.get("source", "")
        run = _named(source, settings)
        if not run.is_trained:
            raise SetupError(
                f"release {release_id} serves, from {source or 'an unknown source'}, which is no run in "
                f"{run.folder.parent}: say with --from which run to train from"
            )
    if not run.is_trained:
        return None
    return run if await _reads_same_clip(run, database, settings) else None


async def plan_round(
    database: Database, settings: Settings, given: str | None, refusal: Refusal | None
) -> Round | str:
    """The next round, or why there is none."""
    if trial := trial_of(await ReleaseRegistry(database).plan()):
        return trial
    base = await choose_base(database, settings, given)
    new = await new_to(base, database)
    tried_seq = refusal.last_seq if refusal is not None and refusal.log_id == new.log_id else 0
    count = await _count(database, max(new.after_seq, tried_seq), new.last_seq)
    if count < settings.hourly_min_interactions:
        if base is not None and (again := await _with_new_index(base, new, database, settings, refusal)):
            return again
        since = f"run {refusal.run} was refused" if tried_seq > new.after_seq and refusal else "the last run"
        return f"{count:,} new interactions since {since}, fewer than {settings.hourly_min_interactions:,}"
    return Round(
        run=f"{PREFIX}{datetime.now(UTC):%Y%m%dT%H%M%S%f}Z",
        base=base.name if base else None,
        new=new,
    )


def trial_of(plan: Plan | None) -> str:
    """Why nothing may be published while a release is tried; empty when none is."""
    if plan is None or plan.trial is None:
        return ""
    return f"release {plan.trial.release_id} is being tried, and publishing would end that"


async def _with_new_index(
    base: Run, new: LogRange, database: Database, settings: Settings, refusal: Refusal | None
) -> Round | None:
    """A round that publishes what serves again, if the catalogue has changed enough since."""
    registry = ReleaseRegistry(database)
    if (release_id := await registry.active()) is None:
        return None
    manifest = (await registry.get(release_id)).manifest
    if manifest.get("source") != base.name:
        return None
    feed = ChangeFeed(database)
    tried_seq = refusal.catalogue_seq if refusal is not None else 0
    changed = await feed.count(max(int(manifest["catalogue_seq"]), tried_seq))
    latest = await published_release(database, base.name)
    if changed < settings.hourly_min_videos or latest is None:
        return None
    logger.info("%d videos changed since release %s was built", changed, release_id)
    return Round(
        run=base.name,
        base=base.name,
        # If it is refused, that says nothing of a new training.
        new=new.model_copy(update={"last_seq": new.after_seq}),
        replaces=latest,
        catalogue_seq=await feed.last(),
        step=Step.RANK,
    )


async def new_to(base: Run | None, database: Database) -> LogRange:
    """What of the log a run has not read: all, where it read another log or does not say."""
    extent = await InteractionLog(database).extent()
    log = base.read_metrics().get("log") if base else None
    after_seq = int(log["last_seq"]) if log and log["log_id"] == extent.log_id else 0
    return LogRange(log_id=extent.log_id, after_seq=after_seq, last_seq=extent.last_seq)


async def published_release(database: Database, run: str) -> str | None:
    """The release that a run became, if it ever served."""
    served = sa.select(activations.c.release_id).where(activations.c.release_id == releases.c.release_id)
    query = sa.select(releases.c.release_id, releases.c.manifest).where(
        releases.c.state != ReleaseState.REFUSED, served.exists()
    )
    async with database.read() as connection:
        rows = (await connection.execute(query.order_by(releases.c.create_time_us.desc()).limit(50))).all()
    return next((row.release_id for row in rows if row.manifest.get("source") == run), None)


async def was_tried(database: Database, run: str) -> bool:
    """Whether what a run became was tried beside another release, and never served all."""
    c = activations.c
    tried = sa.select(c.seq).where(c.trial_release_id == releases.c.release_id)
    served = sa.select(c.seq).where(c.release_id == releases.c.release_id)
    query = sa.select(releases.c.manifest).where(tried.exists(), ~served.exists())
    async with database.read() as connection:
        manifests = (await connection.execute(query)).scalars()
        return any(manifest.get("source") == run for manifest in manifests)


async def old_runs(database: Database, settings: Settings, given: str | None) -> list[Path]:
    """The folders of the job's own runs, but for the newest ones and those that a round may start from.

    Those are the runs of all releases that may serve, by a rollback too, and the one that is `given` instead.
    """
    query = sa.select(releases.c.manifest).where(releases.c.state == ReleaseState.READY)
    async with database.read() as connection:
        kept = {manifest.get("source") for manifest in (await connection.execute(query)).scalars()}
    runs = sorted((settings.data_dir / "runs").glob(f"{PREFIX}*"))
    return [folder for folder in runs[: -settings.releases_kept] if folder.name not in {*kept, given}]


def _named(source: str, settings: Settings) -> Run:
    try:
        return Run.named(source, settings)
    except SetupError:
        return Run(settings.data_dir / "runs" / "none")


async def _reads_same_clip(run: Run, database: Database, settings: Settings) -> bool:
    """The weights behind the clip vector mean nothing to another CLIP's."""
    own, coming = run.read_metrics().get("clip_model"), await next_clip_model(database, settings)
    if own is None or own == coming or not own:
        return True
    logger.info("run %s read another CLIP than the next release has: training anew", run.name)
    return False


async def _count(database: Database, after_seq: int, last_seq: int) -> int:
    """Interactions that can be a target."""
    c = interactions.c
    query = sa.select(sa.func.count()).where(
        c.seq > after_seq, c.seq <= last_seq, c.kind != InteractionKind.SKIP
    )
    async with database.engine.connect() as connection:
        return int((await connection.execute(query)).scalar_one())
