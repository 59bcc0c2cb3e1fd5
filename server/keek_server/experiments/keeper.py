"""Looks after running experiments: stops arms that do harm, and moves users to what works."""

import asyncio
import logging

from keek_server.clock import now_us
from keek_server.errors import KeekError
from keek_server.experiments.attribution import WINDOW_HOURS
from keek_server.experiments.definitions import CONTROL
from keek_server.experiments.registry import Experiment, ExperimentRegistry
from keek_server.experiments.reports import ExperimentReports, Report

logger = logging.getLogger(__name__)


class ExperimentKeeper:
    """A job that any number of servers may do: each look at an experiment is one server's."""

    def __init__(self, registry: ExperimentRegistry, reports: ExperimentReports, *, review_s: float) -> None:
        """
        Args:
            registry: What runs.
            reports: Makes reports.
            review_s: How often an experiment is looked at.
        """
        self._registry = registry
        self._reports = reports
        self._review_s = review_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._review_s / 2)
            try:
                await self.review()
            except KeekError as error:
                logger.warning("experiments are not looked after: %s", error)

    async def review(self) -> None:
        """Looks at all that is due.

        Raises:
            KeekError: When the database is down, or a report cannot be made.
        """
        for experiment in await self._registry.running():
            guardrails = experiment.definition.guardrails
            if not (experiment.definition.adaptation or guardrails.latency_ratio or guardrails.empty_share):
                continue
            before_us = now_us() - int(self._review_s * 1e6)
            if await self._registry.claim_review(experiment.id, before_us):
                await self._act(
                    experiment, await self._reports.make(experiment.id, window_hours=WINDOW_HOURS)
                )

    async def _act(self, experiment: Experiment, report: Report) -> None:
        gone = {arm.name for arm in experiment.stopped_arms}
        stopped = False
        names = [arm.name for arm in experiment.definition.arms]
        for verdict in report.figures["guardrails"]:
            if verdict["verdict"] == "stop" and verdict["arm"] not in gone | {names[CONTROL]}:
                logger.warning(
                    "experiment %s: %s is stopped: %s", experiment.id, verdict["arm"], verdict["reason"]
                )
                await self._registry.stop_arm(experiment.id, verdict["arm"], verdict["reason"])
                stopped = True
        if stopped:
            return  # The report's weights have a share for what is stopped now.
        if experiment.definition.adaptation is not None and (weights := report.figures["new_weights"]):
            logger.info("experiment %s: new weights %s", experiment.id, weights)
            await self._registry.adapt(experiment.id, weights)
