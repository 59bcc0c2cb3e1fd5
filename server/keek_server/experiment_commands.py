"""`keek-server experiments report`: what the logs say of an experiment."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np

from keek_server.clock import now_us
from keek_server.command import Command
from keek_server.errors import FailedPreconditionError, NotFoundError
from keek_server.experiments.attribution import WINDOW_HOURS
from keek_server.experiments.bandit import Limits, allocate_means
from keek_server.experiments.guardrails import Bounds
from keek_server.experiments.measures import MEASURES, measured, per_slot
from keek_server.experiments.reading import Logged, read_experiment
from keek_server.experiments.registry import Experiment, ExperimentRegistry
from keek_server.experiments.report import Question, ReportArm, build_report
from keek_server.experiments.report_page import report_page
from keek_server.experiments.report_text import report_text
from keek_server.experiments.reports import NOT_FOUND
from keek_server.experiments.totals import user_totals
from keek_server.files import written_aside
from keek_server.settings import Settings
from keek_server.storage.database import open_database

_HOUR_US: Final = 3600 * 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` reads."""
    subparsers = parser.add_subparsers(dest="experiments_command", required=True)
    report = subparsers.add_parser("report", help="what each arm's users did, from the logs")
    report.add_argument("experiment_id", metavar="ID")
    report.add_argument(
        "--window-hours",
        metavar="H",
        type=float,
        default=WINDOW_HOURS,
        help="how long after a feed an interaction may come that it caused (default: %(default)g)",
    )
    report.add_argument("--json", action="store_true", help="print all figures as one JSON object")
    report.add_argument("--html", metavar="FILE", type=Path, help="write a page that needs nothing else")
    # For a server that was asked: the figures, the table and the page as one JSON object.
    report.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)


async def run(arguments: argparse.Namespace, settings: Settings) -> None:
    """Prints the report; exits with NOT_FOUND where there is no such experiment.

    Raises:
        FailedPreconditionError: When it never ran.
        UnavailableError: When the database is down or late.
    """
    window_us = int(arguments.window_hours * _HOUR_US)
    async with open_database(settings) as database:
        try:
            experiment = await ExperimentRegistry(database).get(arguments.experiment_id)
        except NotFoundError as error:
            print(f"keek-server: {error}", file=sys.stderr)
            sys.exit(NOT_FOUND)
        if experiment.start_time_us is None:
            raise FailedPreconditionError(f"experiment {experiment.id} never ran")
        logged = await read_experiment(database, experiment, window_us=window_us)
    figures = _figures(experiment, logged, window_us, settings)
    if arguments.whole:
        print(json.dumps({"figures": figures, "text": report_text(figures), "html": report_page(figures)}))
        return
    if arguments.html:
        with written_aside(arguments.html, arguments.html.with_name(f"{arguments.html.name}.part")) as page:
            page.write(report_page(figures).encode())
    print(json.dumps(figures) if arguments.json else report_text(figures))


def _figures(experiment: Experiment, logged: Logged, window_us: int, settings: Settings) -> dict[str, Any]:
    assert experiment.start_time_us is not None
    definition = experiment.definition
    stopped = {arm.name: arm.time_us for arm in experiment.stopped_arms}
    question = Question(
        experiment.id,
        [ReportArm(arm.name, arm.weight, stopped.get(arm.name)) for arm in definition.arms],
        experiment.start_time_us,
        experiment.stop_time_us or now_us(),
        since_us=experiment.weights_time_us,
        window_us=window_us,
        weights=settings.interaction_weights,
    )
    guardrails = definition.guardrails
    bounds = Bounds(
        latency_relative=guardrails.latency_ratio - 1 if guardrails.latency_ratio else None,
        slow_share=None,
        empty_share=guardrails.empty_share or None,
        short_share=None,
        degraded_share=None,
    )
    figures = build_report(question, logged.exposures, logged.interactions, logged.health, bounds)
    return figures | {"new_weights": _new_weights(experiment, logged, question)}


def _new_weights(experiment: Experiment, logged: Logged, question: Question) -> dict[str, float] | None:
    """By running arm, where the experiment adapts; they share what they have in all. None for no change."""
    adaptation, arms = experiment.definition.adaptation, experiment.definition.arms
    if adaptation is None:
        return None
    stopped = {arm.name for arm in experiment.stopped_arms}
    running = [number for number, arm in enumerate(arms) if arm.name not in stopped]
    weights = np.array([arms[number].weight for number in running])
    total = float(weights.sum())
    if len(running) < 2 or not total:
        return None
    shares = tuple((weights / total).tolist())
    totals = user_totals(
        logged.exposures,
        logged.interactions,
        start_us=question.start_us,
        window_us=question.window_us,
        weights=question.weights,
    )
    (measure,) = (each for each in MEASURES if each.name == adaptation.metric)
    found = measured(totals, per_slot(measure), len(arms))
    # The floor is a share of all arms.
    floor = adaptation.floor * sum(arm.weight for arm in arms) / total
    new = allocate_means(
        [found[number] for number in running],
        shares,
        Limits(floor=min(floor, 1.0 / len(running))),
        # Each look draws anew, and another server would draw the same.
        seed=experiment.review_time_us,
    )
    if new == shares:
        return None
    return {arms[number].name: share * total for number, share in zip(running, new, strict=True)}


EXPERIMENTS: Final = Command("what the logs say of experiments", run, add_arguments)
