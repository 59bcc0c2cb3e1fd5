"""`keek-server serve` and `up`: one server process, or several workers on one port."""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from typing import Final

from pydantic import SecretStr

from keek_server.command import Command
from keek_server.errors import SetupError
from keek_server.port import with_port
from keek_server.settings import Settings
from keek_server.workers.process import SETTLED, UNSETTLED, spawn, stop
from keek_server.workers.supervisor import Supervisor

# The server's own modules are imported where it serves: the parent of workers loads none of them.

logger = logging.getLogger(__name__)

_MAX_WORKERS: Final = 256
_COLLECT_AFTER: Final = 10_000
"""New objects, less those that died."""
_SWITCH_S: Final = 0.0005


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_count,
        help="serve in so many processes on one port, which are replaced when they end, and restarted"
        " one after the other at SIGHUP (default: in this process alone)",
    )


def _add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    _add_workers(parser)
    # What the parent of workers gives them.
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {_MAX_WORKERS}")
    return int(text)


async def _run_serve(arguments: argparse.Namespace, settings: Settings) -> None:
    if arguments.workers is not None:
        await Supervisor(settings, arguments.workers).run()
    else:
        await _serve(settings, worker=arguments.worker, ready_fd=arguments.ready_fd)


async def _serve(settings: Settings, *, worker: int | None = None, ready_fd: int | None = None) -> None:
    """Serves with the Triton, Redis and database that the settings name, until stopped."""
    from keek_server.app import open_app

    _settle()
    async with open_app(settings, worker=worker) as app:
        if ready_fd is not None:
            os.write(ready_fd, SETTLED if app.settled else UNSETTLED)
            os.close(ready_fd)
        logger.info("listening on %s", with_port(settings.listen, app.port))
        await asyncio.Event().wait()


def _settle() -> None:
    """Takes out of this process what makes some answers late."""
    from threadpoolctl import threadpool_limits

    # The parts of one small product wait for each other, and spin meanwhile: calls are the parallelism.
    threadpool_limits(1, user_api="blas")
    # Modules never become garbage, but going through them stops the event loop for 100 ms and more.
    gc.collect()
    gc.freeze()
    # A feed makes thousands of objects that soon die: to look for cycles after 700 each takes 2 % of it.
    gc.set_threshold(_COLLECT_AFTER)
    # The threads that search and commit wait for the interpreter several times a batch, each time as long as
    # the loop may keep it: with the usual 5 ms, a search of 1.6 ms took 6.7.
    sys.setswitchinterval(_SWITCH_S)


async def _run_up(arguments: argparse.Namespace, settings: Settings) -> None:
    """The same, with an embedded Triton and Redis for those that the settings do not name."""
    from keek_server.embedded.running import admin_token_file
    from keek_server.embedded.stack import EmbeddedStack

    async with EmbeddedStack(settings) as stack:
        if settings.admin_token is None and stack.settings.admin_token is not None:
            path = admin_token_file(settings.data_dir)
            logger.info("`keek releases` may change what serves with KEEK_ADMIN_TOKEN_FILE=%s", path)
        if arguments.workers is not None:
            await _serve_beside(stack.settings, arguments.workers)
        else:
            await _serve(stack.settings)


async def _serve_beside(settings: Settings, count: int) -> None:
    """Serves in workers whose parent is a process of its own: this one needs gRPC to look after Triton."""
    process = await spawn(["serve", "--workers", str(count)], _variables(settings))
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, process.send_signal, signal.SIGHUP)
    try:
        code = await process.wait()
    finally:
        # It stops its workers in time, by itself.
        await stop(process, None)
    raise SetupError(f"the workers' parent ended with code {code}; its reason is above")


def _variables(settings: Settings) -> dict[str, str]:
    """What a stack has filled in."""
    found = {
        "KEEK_REDIS_URL": settings.redis_url,
        "KEEK_TRITON_URL": settings.triton_url,
        "KEEK_TRITON_CONTROL_TOKEN": settings.triton_control_token,
        "KEEK_ADMIN_TOKEN": settings.admin_token,
    }
    return {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in found.items()
        if value is not None
    }


SERVING: Final = {
    "serve": Command(
        "serve with the Triton, Redis and database that the settings name",
        _run_serve,
        _add_serve_arguments,
        serves=True,
    ),
    "up": Command(
        "the same, with an embedded Triton and Redis for those that the settings do not name",
        _run_up,
        _add_workers,
        serves=True,
    ),
}
