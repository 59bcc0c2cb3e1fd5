"""`keek releases`: its actions and their options."""

import argparse
from collections.abc import Callable
from pathlib import Path

from keek.cli import releases
from keek.cli.admin import add_admin
from keek.cli.arguments import add_common, identifier, percentage, positive, seconds
from keek.client import Client

Action = Callable[[Client, argparse.Namespace], int]


def add_releases(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = command("releases", releases.list_releases, "Releases: which there are, and which serve whom")
    parser.set_defaults(count=20)
    actions = parser.add_subparsers(title="actions", metavar="[ACTION]")

    def action(name: str, run: Action, summary: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=summary, description=f"{summary}.")
        add_common(added)
        added.set_defaults(run=run)
        return added

    listing = action("list", releases.list_releases, "The newest releases, and what each server runs")
    listing.add_argument("--count", type=positive, default=20, help="releases wanted (20)")
    one = action("get", releases.get, "One release, and what its gates measured")
    one.add_argument("release", metavar="RELEASE", type=identifier)
    action("watch", releases.watch, "What serves where, again at each change, until Ctrl-C")
    _add_changes(action)
    _add_diff(action)


def _add_changes(action: Callable[..., argparse.ArgumentParser]) -> None:
    activate = action("activate", releases.activate, "Everyone gets this release; ends a trial")
    back = action("rollback", releases.rollback, "Everyone gets the release before the active one")
    canary = action("canary", releases.canary, "Some users get this release, always the same ones")
    shadow = action("shadow", releases.shadow, "This release's feeds are compared, and not shown")
    end = action("end-trial", releases.end_trial, "Ends a canary or a shadow")
    for naming in (activate, canary, shadow):
        naming.add_argument("release", metavar="RELEASE", type=identifier)
    canary.add_argument("percent", metavar="PERCENT", type=percentage, help="of the users")
    shadow.add_argument("percent", metavar="PERCENT", type=percentage, help="of the feeds")
    for changing in (activate, back, canary, shadow, end):
        changing.add_argument("--reason", type=identifier, default="", help="for the history")
        changing.add_argument(
            "--wait-s", type=seconds, default=30.0, help="how long to wait for all servers (30)"
        )
        add_admin(changing)


def _add_diff(action: Callable[..., argparse.ArgumentParser]) -> None:
    diff = action("diff", releases.diff, "The feeds that users would get of two releases, side by side")
    diff.add_argument("release", metavar="RELEASE", type=identifier)
    diff.add_argument("other", metavar="OTHER", type=identifier)
    users = diff.add_mutually_exclusive_group(required=True)
    users.add_argument("--users", type=identifier, help="separated by commas")
    users.add_argument("--users-file", metavar="FILE", type=Path, help="one a line")
    diff.add_argument("--page-size", type=positive, default=10, help="items of a feed (10)")
    add_admin(diff)
