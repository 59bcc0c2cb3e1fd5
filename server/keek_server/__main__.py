"""The command `keek-server`."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress

import uvloop
from pydantic import ValidationError

from keek_server.app import open_app
from keek_server.console import log_to_stderr
from keek_server.embedded.stack import EmbeddedStack
from keek_server.errors import SetupError
from keek_server.settings import Settings

logger = logging.getLogger("keek_server")


async def serve(settings: Settings) -> None:
    """Serves with the Triton, Redis and database that the settings name, until stopped."""
    async with open_app(settings) as app:
        host = settings.listen.rpartition(":")[0]
        logger.info("listening on %s:%d", host, app.port)
        await asyncio.Event().wait()


async def up(settings: Settings) -> None:
    """The same, with an embedded Triton and Redis for those that the settings do not name."""
    async with EmbeddedStack(settings) as stack:
        await serve(stack.settings)


async def _until_signal(command: Coroutine[None, None, None]) -> None:
    """Runs a command until SIGINT or SIGTERM, which cancel it: what it opened, it closes."""
    task = asyncio.create_task(command)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


_COMMANDS: dict[str, Callable[[Settings], Coroutine[None, None, None]]] = {"serve": serve, "up": up}


def main() -> None:
    """Entry point: 0 after a clean stop, 1 when it could not start."""
    parser = argparse.ArgumentParser(prog="keek-server", description="The Keek recommendation server.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in _COMMANDS.items():
        commands.add_parser(name, help=(command.__doc__ or "").splitlines()[0])
    arguments = parser.parse_args()
    log_to_stderr()
    try:
        uvloop.run(_until_signal(_COMMANDS[arguments.command](Settings())))
    except SetupError as error:
        sys.exit(f"keek-server: {error}")
    except ValidationError as error:
        sys.exit(f"keek-server: settings: {error}")


if __name__ == "__main__":
    main()
