"""What the hourly job's steps do."""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from keek_server.clock import now_us
from keek_server.embedded import EmbeddedStack, with_running_stack
from keek_server.errors import KeekError
from keek_server.experiments.attribution import WINDOW_HOURS
from keek_server.releases.registry import ReleaseRegistry
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_server.towers.client import open_towers
from keek_training.config import TrainConfig
from keek_training.hourly.bases import (
    choose_base,
    old_runs,
    plan_round,
    published_release,
    trial_of,
    was_tried,
)
from keek_training.hourly.feeds import write_cached_feeds
from keek_training.hourly.reading import read_all, read_new
from keek_training.hourly.state import Refusal, Round
from keek_training.publishing.publish import HeldUpError, Wishes, publish
from keek_training.publishing.source import TowerSource
from keek_training.runs import Run

logger = logging.getLogger(__name__)

_DAY_US: Final = 24 * 3600 * 1_000_000
_WINDOW_US: Final = int(WINDOW_HOURS * 3600 * 1_000_000)


class HourlySteps:
    """See `keek_training.hourly.job.Steps`. Each step opens what it needs, and closes it."""

    def __init__(
        self, settings: Settings, config: TrainConfig | None = None, base: str | None = None
    ) -> None:
        """
        Args:
            settings: Where everything is.
            config: Of the training; the base run's own by default.
            base: The run to train from; the one that serves by default.
        """
        self._settings = settings
        self._config = config
        self._base = base

    def plan(self, refusal: Refusal | None) -> Round | str:
        """See `Steps`."""

        async def plan() -> Round | str:
            async with open_database(self._settings) as database:
                return await plan_round(database, self._settings, self._base, refusal)

        return asyncio.run(plan())

    def is_current(self, current: Round) -> bool:
        """See `Steps`; also when the round's own run serves, or did, and only the note of it is missing."""

        async def is_current() -> bool:
            async with open_database(self._settings) as database:
                if not current.replaces and await published_release(database, current.run) is not None:
                    return True
                if await was_tried(database, current.run):
                    # Somebody looks after it, or has found that it should not serve.
                    return False
                return await self._base_serves(current, database)

        return asyncio.run(is_current())

    def train(self, current: Round) -> None:
        """See `Steps`."""
        run = self._run(current)
        if run.is_trained:
            return
        # Importing Keras takes seconds.
        from keek_training.fine_tuning import fine_tuning_config
        from keek_training.train_run import train_run

        if current.base is None:
            data = asyncio.run(read_all(self._settings))
            train_run(data.dataset, self._config or TrainConfig(), run, read=data.origin)
            return
        base = Run.named(current.base, self._settings)
        config = fine_tuning_config(base, self._config)
        tuning = config.fine_tuning
        config = config.model_copy(update={"epochs": self._settings.hourly_epochs})
        data = asyncio.run(read_new(self._settings, current.new, tuning, config.seed))
        train_run(data.dataset, config, run, base=base, read=data.origin)

    def export(self, current: Round) -> None:
        """See `Steps`."""
        run = self._run(current)
        if not run.is_exported:
            from keek_training.export import export

            export(run)

    def rank(self, current: Round) -> None:
        """See `Steps`."""
        run = self._run(current)
        if not current.replaces and run.read_ranker() is not None:
            return
        from keek_training.ranker.learning import learn_ranker

        since_us = now_us() - int(self._settings.hourly_ranker_days * _DAY_US)
        try:
            asyncio.run(learn_ranker(self._settings, window_us=_WINDOW_US, since_us=since_us, run=run))
        except KeekError as error:
            logger.info("run %s gets no new ranker: %s", run.name, error)

    def publish(self, current: Round) -> str:
        """See `Steps`."""
        return asyncio.run(self._publish(current))

    def feeds(self) -> int:
        """See `Steps`; none before the first release."""
        return asyncio.run(self._feeds())

    def clean_up(self) -> None:
        """See `Steps`."""

        async def old() -> list[Path]:
            async with open_database(self._settings) as database:
                return await old_runs(database, self._settings, self._base)

        for folder in asyncio.run(old()):
            shutil.rmtree(folder, ignore_errors=True)

    async def _publish(self, current: Round) -> str:
        run = self._run(current)
        async with open_database(self._settings) as database:
            done = await published_release(database, run.name)
            if done is not None and done != current.replaces:
                logger.info("run %s was published as %s", run.name, done)
                return done
            # Read before what is asked of it: a plan that comes after it is not overruled.
            plan = await ReleaseRegistry(database).plan()
            if trial := trial_of(plan):
                raise HeldUpError(trial)
            if not await self._base_serves(current, database):
                raise HeldUpError(f"what serves is not {current.base or 'nothing'} any more")
        wishes = Wishes(after_seq=plan.seq if plan else None)
        async with self._stack() as settings:
            return (await publish(TowerSource.of_run(run), settings, wishes)).release_id

    async def _base_serves(self, current: Round, database: Database) -> bool:
        base = await choose_base(database, self._settings, self._base)
        return current.base == (base.name if base else None)

    async def _feeds(self) -> int:
        async with open_database(self._settings) as database:
            release_id = await ReleaseRegistry(database).active()
            if release_id is None or not self._settings.cached_feed_users:
                return 0
            async with self._stack() as settings, open_towers(settings) as towers:
                return await write_cached_feeds(release_id, database, towers, settings)

    @asynccontextmanager
    async def _stack(self) -> AsyncIterator[Settings]:
        """The stack that runs in the data directory, or one of its own."""
        running = with_running_stack(self._settings)
        if running is not None:
            yield running
            return
        if self._settings.redis_url is None:
            logger.info("no stack runs in %s: cached feeds end with this job", self._settings.data_dir)
        async with EmbeddedStack(self._settings) as stack:
            yield stack.settings

    def _run(self, current: Round) -> Run:
        return Run.named(current.run, self._settings)
