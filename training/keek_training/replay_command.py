"""`keek-train replay`: what another split or release would have earned, from feeds that were served with some
exploration."""

import argparse
import asyncio
import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from keek_server.clock import now_us
from keek_server.commands import parse_since
from keek_server.errors import FailedPreconditionError, SetupError
from keek_server.experiments.attribution import WINDOW_HOURS
from keek_server.experiments.reading import Logged, read_feeds
from keek_server.experiments.registry import ExperimentRegistry
from keek_server.experiments.release_replay import Choices, replay_release
from keek_server.experiments.replay_report import (
    release_found,
    release_text,
    replay_found,
    replay_text,
)
from keek_server.experiments.split_replay import Split, replay_split
from keek_server.experiments.totals import slot_rewards
from keek_server.feed.mixing import slots_of
from keek_server.settings import Settings
from keek_server.storage.database import Database, open_database
from keek_training.datasets.commands import Subparsers

_HOUR_US: Final = 3600 * 1_000_000


@dataclass(frozen=True, slots=True)
class _Asked:
    """A release, and what it would have shown."""

    release_id: str
    create_time_us: int
    choices: list[Choices | None]


def add_replay_arguments(subparsers: Subparsers) -> None:
    """Adds the command, for `run_replay`."""
    parser = subparsers.add_parser(
        "replay", help="what another split or release would have earned, from the exposure log"
    )
    parser.add_argument(
        "--mix",
        metavar="P/T",
        type=_mix,
        default=[],
        action="append",
        help="shares of personalised and trending slots, as 60/40; may be given several times",
    )
    parser.add_argument(
        "--release",
        metavar="RELEASE_ID",
        default=[],
        action="append",
        help="a release that is ready, whether it serves or not; may be given several times",
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
        help="how long after a feed an interaction may come that it caused (default: %(default)g)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_replay(arguments: argparse.Namespace, settings: Settings) -> int:
    """Prints estimates for each split and release, beside what the log earned.

    Raises:
        FailedPreconditionError: When the log has nothing that was served with exploration, or a release
            has no files.
        NotFoundError: When there is no such experiment or release.
        SetupError: When neither is asked for, or a release cannot be opened.
        UnavailableError: When the database is down or late.
    """
    if not arguments.mix and not arguments.release:
        raise SetupError("say what is to be replayed: --mix P/T or --release RELEASE_ID")
    window_us = int(arguments.window_hours * _HOUR_US)
    logged, asked = asyncio.run(_read(arguments, settings, window_us))
    rewards = slot_rewards(logged.exposures, logged.interactions, window_us, settings.interaction_weights)
    results: list[dict[str, Any]] = []
    texts = []
    for personalised, trending in arguments.mix:
        found = replay_split(logged.exposures, rewards, Split(trending), slots_of)
        results.append({"mix": f"{personalised:g}/{100 * trending:g}", **replay_found(found)})
        texts.append(replay_text(results[-1], f"mix {results[-1]['mix']}"))
    for own in asked:
        replayed = replay_release(logged.exposures, rewards, logged.pools, own.choices)
        used = np.array([choices is not None for choices in own.choices])
        before = float((logged.exposures.times_us[used] < own.create_time_us).mean())
        results.append({"release": own.release_id, **release_found(replayed, before)})
        texts.append(release_text(results[-1], own.release_id))
    if arguments.json:
        print(json.dumps({"feeds": len(logged.exposures), "replays": results}))
    else:
        print("\n".join(texts))
    return 0


async def _read(
    arguments: argparse.Namespace, settings: Settings, window_us: int
) -> tuple[Logged, list[_Asked]]:
    end_us = arguments.until or now_us()
    start_us = arguments.since or end_us - 7 * 24 * _HOUR_US
    experiment_id, _, arm = (arguments.arm or "").partition("/")
    per_owner_cap = settings.per_owner_cap
    async with open_database(settings) as database:
        if experiment_id:
            experiment = await ExperimentRegistry(database).get(experiment_id)
            caps = {own.name: own.parameters.per_owner_cap for own in experiment.definition.arms}
            per_owner_cap = caps.get(arm) or per_owner_cap
        logged = await read_feeds(
            database, start_us, end_us, window_us=window_us, experiment_id=experiment_id, arm=arm
        )
        if not len(logged.exposures):
            raise FailedPreconditionError("the exposure log has no such feeds in that time")
        asked = [
            await _ask(release_id, logged, database, settings, per_owner_cap)
            for release_id in arguments.release
        ]
    return logged, asked


async def _ask(
    release_id: str, logged: Logged, database: Database, settings: Settings, per_owner_cap: int
) -> _Asked:
    # They bring ONNX Runtime, which replays of splits do without.
    from keek_training.replay_choices import release_choices
    from keek_training.replay_target import opened_target

    async with opened_target(release_id, database, settings) as target:
        choices = await release_choices(target, logged, database, settings, per_owner_cap=per_owner_cap)
        return _Asked(release_id, target.release.manifest.create_time_us, choices)


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
