"""The command `keek-server`."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Coroutine, Mapping
from typing import Any

import uvloop
from pydantic import ValidationError

from keek_server.command import Command
from keek_server.console import log_to_stderr
from keek_server.errors import KeekError
from keek_server.serving import SERVING
from keek_server.settings import Settings


def _commands() -> Mapping[str, Command]:
    """All, but for those that serve alone, which load nothing of the others."""
    if sys.argv[1:2] and sys.argv[1] in SERVING:
        return SERVING
    from keek_server.commands import EXPORT, REBUILD
    from keek_server.experiment_commands import EXPERIMENTS
    from keek_server.index_commands import INDEX

    return {
        **SERVING,
        "export": EXPORT,
        "rebuild-projection": REBUILD,
        "index": INDEX,
        "experiments": EXPERIMENTS,
    }


async def _until_signal(command: Coroutine[Any, Any, None]) -> bool:
    """Runs a command until SIGINT or SIGTERM, which cancel it: what it opened, it closes.

    Returns:
        Whether it came to its end by itself.
    """
    task = asyncio.create_task(command)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


def main() -> None:
    """Entry point: 0 when all went well, 1 with one line on standard error when not, 130 when cut off."""
    parser = argparse.ArgumentParser(prog="keek-server", description="The Keek recommendation server.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    commands = _commands()
    for name, command in commands.items():
        command.add_arguments(subparsers.add_parser(name, help=command.help))
    arguments = parser.parse_args()
    worker = getattr(arguments, "worker", None)
    log_to_stderr("" if worker is None else f"worker {worker}: ")
    chosen = commands[arguments.command]
    try:
        finished = uvloop.run(_until_signal(chosen.run(arguments, Settings())))
    except KeekError as error:
        sys.exit(f"keek-server: {error}")
    except ValidationError as error:
        sys.exit(f"keek-server: settings: {error}")
    if not finished and not chosen.serves:
        sys.exit(130)


if __name__ == "__main__":
    main()
