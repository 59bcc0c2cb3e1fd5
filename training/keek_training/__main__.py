"""The command `keek-train`."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable

from pydantic import ValidationError

from keek_server.console import log_to_stderr
from keek_server.errors import KeekError
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_training import commands
from keek_training.datasets import commands as data_commands
from keek_training.evaluation import commands as evaluation_commands
from keek_training.hourly import commands as hourly_commands
from keek_training.ranker.command import add_ranker_arguments, run_ranker
from keek_training.replay_command import add_replay_arguments, run_replay
from keek_training.train_command import add_train_arguments, run_train
from keek_training.tune import commands as tune_commands


def _import(arguments: argparse.Namespace, settings: Settings) -> int:
    async def run() -> int:
        async with open_database(settings) as database:
            return await data_commands.run_import(arguments, database)

    return asyncio.run(run())


def _synth(arguments: argparse.Namespace, _settings: Settings) -> int:
    return asyncio.run(data_commands.run_synth(arguments))


_COMMANDS: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
    "import": _import,
    "synth": _synth,
    "train": run_train,
    "tune": tune_commands.run_tune,
    "export": commands.run_export,
    "export-clip": commands.run_export_clip,
    "publish": commands.run_publish,
    "evaluate": evaluation_commands.run_evaluate,
    "replay": run_replay,
    "ranker": run_ranker,
    "hourly": hourly_commands.run_hourly,
    "demo": commands.run_demo,
}

_IN_THE_BACKGROUND = {
    "train",
    "tune",
    "export",
    "export-clip",
    "publish",
    "evaluate",
    "replay",
    "ranker",
    "hourly",
}
_NICENESS = 10


def main() -> None:
    """Entry point: 0 when all went well, 1 with one line on standard error when not."""
    parser = argparse.ArgumentParser(prog="keek-train", description="Data, training and publishing for Keek.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    data_commands.add_arguments(subparsers)
    add_train_arguments(subparsers)
    tune_commands.add_arguments(subparsers)
    commands.add_arguments(subparsers)
    evaluation_commands.add_arguments(subparsers)
    add_replay_arguments(subparsers)
    add_ranker_arguments(subparsers)
    hourly_commands.add_arguments(subparsers)
    arguments = parser.parse_args()
    log_to_stderr()
    if arguments.command in _IN_THE_BACKGROUND:
        # Servers may run on the same machine, and somebody waits for them.
        os.nice(_NICENESS)
    try:
        sys.exit(_COMMANDS[arguments.command](arguments, Settings()))
    except KeekError as error:
        sys.exit(f"keek-train: {error}")
    except ValidationError as error:
        sys.exit(f"keek-train: settings: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
