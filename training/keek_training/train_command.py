"""`keek-train train`: arguments, and what it trains on."""

import argparse
import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

from keek_server.errors import SetupError
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_training.datasets.commands import Subparsers
from keek_training.evaluation.public import ALL, FITS
from keek_training.runs import Run

if TYPE_CHECKING:
    from keek_training.config import TrainConfig
    from keek_training.hourly.reading import LogData

_ONLY_ANEW = ("base", "data", "fit", "config", "epochs", "seed")
"""Options that a training which goes on has settled already."""


def add_train_arguments(subparsers: Subparsers) -> None:
    """Adds the command, for `run_train`."""
    train = subparsers.add_parser("train", help="train both towers")
    train.add_argument("--run", default="latest", help="name of the run (default: latest)")
    train.add_argument(
        "--from", dest="base", metavar="RUN", help="fine-tune this run, on what is new to it in the data"
    )
    train.add_argument(
        "--data",
        metavar="SPEC|DIR",
        help="a data set as for import, or the folder of a public one; the database when left out",
    )
    train.add_argument(
        "--fit",
        choices=FITS,
        help="what of a public data set's folder: its training part, or everything without holding anything "
        "out, for as many passes as the configuration's fit_epochs (default: training)",
    )
    train.add_argument("--config", type=Path, help="YAML or JSON with what differs from the defaults")
    train.add_argument("--epochs", type=int, help="the most passes over the data")
    train.add_argument("--seed", type=int)
    train.add_argument(
        "--resume", action="store_true", help="go on with this run's training, which was stopped"
    )


def run_train(arguments: argparse.Namespace, settings: Settings) -> int:
    """Trains a run, on the log in the database or on a data set; or goes on with one that was stopped."""
    from keek_training.train_run import train_run

    run = Run.named(arguments.run, settings)
    base = Run.named(arguments.base, settings) if arguments.base else None
    if arguments.resume:
        config, data = _unfinished(run, arguments, settings)
    else:
        config = _config(run, base, arguments)
        data = _data(base, config, arguments, settings)
    metrics = train_run(data.dataset, config, run, base=base, read=data.origin, resume=arguments.resume)
    print(json.dumps(metrics))
    print(f"trained: {run.folder}; learning curves: {run.curves}")
    return 0


def _config(run: Run, base: Run | None, arguments: argparse.Namespace) -> "TrainConfig":
    from keek_training.config import TrainConfig
    from keek_training.fine_tuning import fine_tuning_config

    options = {"epochs": arguments.epochs, "seed": arguments.seed}
    given = {name: value for name, value in options.items() if value is not None}
    if arguments.fit == ALL:
        given["validation_users"] = 0
    config = TrainConfig.load(arguments.config) if arguments.config else None
    if base is not None:
        if base == run:
            raise SetupError(
                f"run {run.name!r} would take its own place: give the new one a --run of its own"
            )
        config = fine_tuning_config(base, config)
    return TrainConfig.of((config or TrainConfig()).model_dump() | given, "the options")


def _data(
    base: Run | None, config: "TrainConfig", arguments: argparse.Namespace, settings: Settings
) -> "LogData":
    from keek_training.hourly.reading import LogData, read_all
    from keek_training.run_data import open_data

    if arguments.data:
        return LogData(*open_data(arguments.data, arguments.fit))
    if arguments.fit:
        raise SetupError("--fit needs --data, the folder of a public data set")
    if base is None:
        return asyncio.run(read_all(settings))
    return asyncio.run(_read_new(base, config, settings))


def _unfinished(
    run: Run, arguments: argparse.Namespace, settings: Settings
) -> tuple["TrainConfig", "LogData"]:
    """What a stopped training was asked for, and its data, read again."""
    from keek_training.checkpoints import read_meta
    from keek_training.config import TrainConfig
    from keek_training.hourly.reading import LogData
    from keek_training.run_data import read_again

    if given := [name for name in _ONLY_ANEW if getattr(arguments, name) is not None]:
        name = given[0].replace("base", "from")
        raise SetupError(f"--resume goes on with what the training began with: leave out --{name}")
    meta = read_meta(run)
    return TrainConfig.of(meta["config"]), LogData(read_again(meta["origin"], settings), meta["origin"])


async def _read_new(base: Run, config: "TrainConfig", settings: Settings) -> "LogData":
    from keek_training.hourly.bases import new_to
    from keek_training.hourly.reading import read_new

    async with open_database(settings) as database:
        new = await new_to(base, database)
    return await read_new(settings, new, config.fine_tuning, config.seed)
