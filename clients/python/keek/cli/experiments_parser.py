"""`keek experiments`: its actions and their options."""

import argparse
from collections.abc import Callable
from pathlib import Path

from keek.cli import experiments
from keek.cli.admin import add_admin
from keek.cli.arguments import add_common, hours, identifier, positive, query
from keek.client import Client

Action = Callable[[Client, argparse.Namespace], int]


def add_experiments(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = command("experiments", experiments.list_experiments, "Experiments: which there are, and changes")
    parser.set_defaults(count=20)
    actions = parser.add_subparsers(title="actions", metavar="[ACTION]")

    def action(name: str, run: Action, summary: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=summary, description=f"{summary}.")
        add_common(added)
        added.set_defaults(run=run)
        return added

    listing = action("list", experiments.list_experiments, "The latest experiments")
    listing.add_argument("--count", type=positive, default=20, help="experiments wanted (20)")
    one = action("get", experiments.get, "One experiment, and its arms")
    one.add_argument("experiment", metavar="EXPERIMENT", type=identifier)
    _add_changes(action)
    _add_report(action)


def _add_changes(action: Callable[..., argparse.ArgumentParser]) -> None:
    create = action("create", experiments.create, "A new experiment, as a draft that touches nobody")
    update = action("update", experiments.update, "An experiment as a file has it now")
    start = action("start", experiments.start, "Its share of the users gets its feeds")
    stop = action("stop", experiments.stop, "Everyone gets the usual feeds again, for good")
    conclude = action("conclude", experiments.conclude, "Notes what was learnt; stops it if it runs")
    for defining in (create, update):
        defining.add_argument("file", metavar="FILE", type=Path, help="its definition, as YAML or JSON")
    for naming in (start, stop, conclude):
        naming.add_argument("experiment", metavar="EXPERIMENT", type=identifier)
    conclude.add_argument("--winner", metavar="ARM", type=identifier, default="", help="the arm that won")
    conclude.add_argument("--because", metavar="TEXT", type=query, required=True, help="what was learnt")
    for changing in (create, update, start, stop, conclude):
        add_admin(changing)


def _add_report(action: Callable[..., argparse.ArgumentParser]) -> None:
    report = action("report", experiments.report, "What each arm's users did, beside those of the control")
    report.add_argument("experiment", metavar="EXPERIMENT", type=identifier)
    report.add_argument("--html", metavar="FILE", type=Path, help="write a page with plots as well")
    report.add_argument(
        "--window-hours",
        type=hours,
        default=24.0,
        help="how long after a feed an interaction may belong to it (24)",
    )
    add_admin(report)
