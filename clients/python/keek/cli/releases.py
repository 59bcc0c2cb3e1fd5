"""Commands on releases: which there are, which serve whom, and changes of that."""

import argparse
import itertools
from collections.abc import Iterator

from keek.changes import MAX_DIFF_USERS, ChangeOptions
from keek.cli.commands import WATCH_S
from keek.cli.output import note, print_json
from keek.cli.release_output import Diffs, ReleaseTable, print_release, print_rollout
from keek.client import Client
from keek.v1.release_service_pb2 import FeedDiff, ListReleasesResponse, Rollout

_MAX_PAGE_SIZE = 100
"""Releases on one page, as the contract has it."""

_EXIT_PENDING = 1


def list_releases(client: Client, arguments: argparse.Namespace) -> int:
    """The newest releases, and below them what each server runs."""
    page = ListReleasesResponse()
    table = ReleaseTable()
    for page in _pages(client, arguments):
        if arguments.json:
            print_json(page)
        else:
            table.add(page.releases, page.rollout.plan)
    if not arguments.json and page.HasField("rollout"):
        print()
        print_rollout(page.rollout)
    return 0


def _pages(client: Client, arguments: argparse.Namespace) -> Iterator[ListReleasesResponse]:
    left, token = arguments.count, ""
    while left > 0:
        page = client.list_releases(
            page_size=min(left, _MAX_PAGE_SIZE), page_token=token, timeout_s=arguments.timeout_s
        )
        yield page
        left -= len(page.releases)
        token = page.next_page_token
        if not token:
            return


def get(client: Client, arguments: argparse.Namespace) -> int:
    """One release, and what its gates measured."""
    found = client.get_release(arguments.release, timeout_s=arguments.timeout_s)
    if arguments.json:
        print_json(found)
    else:
        print_release(found.release)
    return 0


def activate(client: Client, arguments: argparse.Namespace) -> int:
    """Everyone gets a release."""
    return _changed(client.activate_release(arguments.release, **_options(arguments)), arguments)


def rollback(client: Client, arguments: argparse.Namespace) -> int:
    """Everyone gets the release before."""
    return _changed(client.rollback_release(**_options(arguments)), arguments)


def canary(client: Client, arguments: argparse.Namespace) -> int:
    """Some users get a release."""
    rollout = client.start_canary(arguments.release, arguments.percent, **_options(arguments))
    return _changed(rollout, arguments)


def shadow(client: Client, arguments: argparse.Namespace) -> int:
    """Nobody gets a release, but its feeds are compared."""
    rollout = client.start_shadow(arguments.release, arguments.percent, **_options(arguments))
    return _changed(rollout, arguments)


def end_trial(client: Client, arguments: argparse.Namespace) -> int:
    """Everyone gets the active release."""
    return _changed(client.end_trial(**_options(arguments)), arguments)


def _options(arguments: argparse.Namespace) -> ChangeOptions:
    return ChangeOptions(reason=arguments.reason, wait_s=arguments.wait_s, timeout_s=arguments.timeout_s)


def _changed(rollout: Rollout, arguments: argparse.Namespace) -> int:
    """Shows the plan and the fleet; 1, with names, when servers have not carried it out."""
    if arguments.json:
        print_json(rollout)
    else:
        print_rollout(rollout)
    if rollout.converged:
        return 0
    names = ", ".join(rollout.pending_servers)
    note(f"keek: plan {rollout.plan.plan_seq} is made, and not yet carried out by {names}")
    return _EXIT_PENDING


def watch(client: Client, arguments: argparse.Namespace) -> int:
    """What serves where, again at each change."""
    for number, now in enumerate(client.watch_releases(timeout_s=arguments.timeout_s or WATCH_S)):
        if arguments.json:
            print_json(now)
            continue
        if number:
            print()
        if now.HasField("rollout"):
            print_rollout(now.rollout)
        else:
            print("no release is active", flush=True)
    return 0


def diff(client: Client, arguments: argparse.Namespace) -> int:
    """The feeds of two releases side by side, and how much they share on average."""
    output = Diffs(arguments.release, arguments.other, as_json=arguments.json)
    users = iter(dict.fromkeys(_users(arguments)))
    while some := list(itertools.islice(users, MAX_DIFF_USERS)):
        output.add(_diffs(client, arguments, some))
    output.close()
    return 0


def _diffs(client: Client, arguments: argparse.Namespace, users: list[str]) -> Iterator[FeedDiff]:
    answer = client.diff_releases(
        arguments.release,
        arguments.other,
        users,
        page_size=arguments.page_size,
        timeout_s=arguments.timeout_s,
    )
    yield from answer.diffs


def _users(arguments: argparse.Namespace) -> list[str]:
    text = arguments.users.replace(",", "\n") if arguments.users else arguments.users_file.read_text("utf-8")
    return [user for line in text.splitlines() if (user := line.strip())]
