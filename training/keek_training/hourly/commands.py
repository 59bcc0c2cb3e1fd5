"""`keek-train hourly`: arguments, what it prints, and the loop."""

import argparse
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from keek_server.settings import Settings
from keek_training.config import TrainConfig
from keek_training.datasets.commands import Subparsers

logger = logging.getLogger(__name__)

_EVERY_S = 3600.0


def add_arguments(subparsers: Subparsers) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "hourly", help="fine-tune on what is new in the log, publish, and write cached feeds"
    )
    parser.add_argument(
        "--from", dest="base", metavar="RUN", help="the run to train from (default: the one that serves)"
    )
    parser.add_argument("--config", type=Path, help="YAML or JSON (default: the configuration of that run)")
    parser.add_argument("--loop", action="store_true", help="again and again, until it is stopped")
    parser.add_argument(
        "--every-s", type=_seconds, default=_EVERY_S, help=f"for --loop (default: {_EVERY_S:.0f})"
    )


def run_hourly(arguments: argparse.Namespace, settings: Settings) -> int:
    """One round, or one after the other; 1 when the model was refused."""
    if arguments.loop:
        return loop(_one_round(arguments), arguments.every_s)
    from keek_training.hourly.job import run_round
    from keek_training.hourly.state import hourly_dir
    from keek_training.hourly.steps import HourlySteps

    config = TrainConfig.load(arguments.config) if arguments.config else None
    outcome = run_round(hourly_dir(settings), HourlySteps(settings, config, arguments.base))
    if outcome.release_id:
        print(f"release {outcome.release_id} is active; {outcome.cached_feeds:,} cached feeds")
    else:
        print(f"nothing published: {outcome.reason}; {outcome.cached_feeds:,} cached feeds refreshed")
    return 0


def loop(command: Sequence[str], every_s: float) -> int:
    """Runs a command every so many seconds until SIGINT or SIGTERM; one that fails is logged.

    Each round is a process of its own: what it took of memory goes with it, and no way of ending
    it ends the loop.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    while True:
        started = time.monotonic()
        process: subprocess.Popen[bytes] | None = None
        try:
            with _uninterrupted():
                process = subprocess.Popen(command)
            code = process.wait()
        except KeyboardInterrupt:
            if process is not None:
                process.terminate()
                process.wait()
            raise
        if code:
            logger.warning("the round failed with exit code %d", code)
        wait_s = max(0.0, every_s - (time.monotonic() - started))
        logger.info("the next round begins in %.0f s", wait_s)
        time.sleep(wait_s)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A signal that comes meanwhile is heard at the end: a start that it cut off would leave a process that
    nobody has, and nobody ends."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda own, _: came.append(own)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for each in came:
        signal.raise_signal(each)


def _one_round(arguments: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "keek_training", "hourly"]
    if arguments.base:
        command += ["--from", arguments.base]
    if arguments.config:
        command += ["--config", str(arguments.config)]
    return command


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be a number of seconds above 0")
    return value
