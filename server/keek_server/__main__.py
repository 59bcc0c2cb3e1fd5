"""The command `keek-server`."""

import argparse
import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import uvloop
from pydantic import ValidationError
from threadpoolctl import threadpool_limits

from keek_server.app import open_app
from keek_server.commands import EXPORT, REBUILD, Command
from keek_server.console import log_to_stderr
from keek_server.embedded.running import admin_token_file
from keek_server.embedded.stack import EmbeddedStack
from keek_server.errors import KeekError
from keek_server.index_commands import INDEX
from keek_server.settings import Settings

logger = logging.getLogger("keek_server")


async def serve(settings: Settings) -> None:
    """Serves with the Triton, Redis and database that the settings name, until stopped."""
    _settle()
    async with open_app(settings) as app:
        host = settings.listen.rpartition(":")[0]
        logger.info("listening on %s:%d", host, app.port)
        await asyncio.Event().wait()


def _settle() -> None:
    """Takes out of this process what makes some answers late."""
    # The parts of one small product wait for each other, and spin meanwhile: calls are the parallelism.
    threadpool_limits(1, user_api="blas")
    # Modules never become garbage, but going through them stops the event loop for 100 ms and more.
    gc.collect()
    gc.freeze()


async def up(settings: Settings) -> None:
    """The same, with an embedded Triton and Redis for those that the settings do not name."""
    async with EmbeddedStack(settings) as stack:
        if settings.admin_token is None and stack.settings.admin_token is not None:
            path = admin_token_file(settings.data_dir)
            logger.info("`keek releases` may change what serves with KEEK_ADMIN_TOKEN_FILE=%s", path)
        await serve(stack.settings)


_COMMANDS = {
    "serve": Command(
        "serve with the Triton, Redis and database that the settings name",
        lambda _arguments, settings: serve(settings),
        serves=True,
    ),
    "up": Command(
        "the same, with an embedded Triton and Redis for those that the settings do not name",
        lambda _arguments, settings: up(settings),
        serves=True,
    ),
    "export": EXPORT,
    "rebuild-projection": REBUILD,
    "index": INDEX,
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
    for name, command in _COMMANDS.items():
        command.add_arguments(subparsers.add_parser(name, help=command.help))
    arguments = parser.parse_args()
    log_to_stderr()
    chosen = _COMMANDS[arguments.command]
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
