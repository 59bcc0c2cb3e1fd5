"""`keek-train replay`: what another split would have earned, from feeds that were served with exploration."""

import argparse
import asyncio
import json
from typing import Final

from keek_server.clock import now_us
from keek_server.commands import parse_since
from keek_server.errors import FailedPreconditionError
from keek_server.experiments.keeper import WINDOW_HOURS
from keek_server.experiments.reading import Logged, read_feeds
from keek_server.experiments.registry import ExperimentRegistry
from keek_server.experiments.replay_report import replay_found, replay_text
from keek_server.experiments.split_replay import Split, replay_split
from keek_server.experiments.totals import slot_rewards
from keek_server.feed.mixing import slots_of
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_training.datasets.commands import Subparsers

_HOUR_US: Final = 3600 * 1_000_000


def add_replay_arguments(subparsers: Subparsers) -> None:
    """Adds the command, for `run_replay`."""
    parser = subparsers.add_parser(
        "replay", help="what another split would have earned, from the exposure log"
    )
    parser.add_argument(
        "--mix",
        metavar="P/T",
        type=_mix,
        required=True,
        action="append",
        help="shares of personalised and trending slots, as 60/40; may be given several times",
    )
    parser.add_argument(
        "--log",
        choices=("exposures",),
        default="exposures",
        help="what is replayed: the exposure log of the database",
    )
    parser.add_argument("--since", metavar="TIME", type=parse_since, help="ISO 8601 (default: a week ago)")
    parser.add_argument("--until", metavar="TIME", type=parse_since, help="ISO 8601 (default: now)")
    parser.add_argument("--arm", metavar="EXPERIMENT/ARM", help="feeds of this arm alone")
    parser.add_argument(
        "--window-hours",
        metavar="H",
        type=float,
        default=WINDOW_HOURS,
        help="how long after a feed an interaction may come that it caused (default: 24)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_replay(arguments: argparse.Namespace, settings: Settings) -> int:
    """Prints estimates for each split, beside what the log earned.

    Raises:
        FailedPreconditionError: When the log has nothing that was served with exploration.
        NotFoundError: When there is no such experiment.
        UnavailableError: When the database is down or late.
    """
    window_us = int(arguments.window_hours * _HOUR_US)
    logged = asyncio.run(_read(arguments, settings, window_us))
    rewards = slot_rewards(logged.exposures, logged.interactions, window_us, settings.interaction_weights)
    results = []
    for personalised, trending in arguments.mix:
        found = replay_split(logged.exposures, rewards, Split(trending), slots_of)
        results.append({"mix": f"{personalised:g}/{100 * trending:g}", **replay_found(found)})
    if arguments.json:
        print(json.dumps({"feeds": len(logged.exposures), "replays": results}))
    else:
        for result in results:
            print(replay_text(result, f"mix {result['mix']}"))
    return 0


async def _read(arguments: argparse.Namespace, settings: Settings, window_us: int) -> Logged:
    end_us = arguments.until or now_us()
    start_us = arguments.since or end_us - 7 * 24 * _HOUR_US
    experiment_id, _, arm = (arguments.arm or "").partition("/")
    async with open_database(settings) as database:
        if experiment_id:
            await ExperimentRegistry(database).get(experiment_id)
        logged = await read_feeds(
            database, start_us, end_us, window_us=window_us, experiment_id=experiment_id, arm=arm
        )
    if not len(logged.exposures):
        raise FailedPreconditionError("the exposure log has no such feeds in that time")
    return logged


def _mix(text: str) -> tuple[float, float]:
    """The personalised part in percent, and the trending share; for argparse."""
    personalised, slash, trending = text.partition("/")
    try:
        parts = float(personalised), float(trending)
    except ValueError:
        parts = -1.0, -1.0
    if not slash or min(parts) < 0 or abs(sum(parts) - 100) > 1e-6:
        raise argparse.ArgumentTypeError(f"{text!r} is no split of 100, as 60/40")
    return parts[0], parts[1] / 100
