"""The command line `keek`."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from keek.channel import VERSION
from keek.cli import commands
from keek.cli.importing import DESCRIPTION, import_videos
from keek.cli.output import note
from keek.client import Client
from keek.errors import CallError, DeadlineExceededError, InvalidArgumentError, UnavailableError

DEFAULT_TARGET: Final = "localhost:50051"

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130
"""128 and the number of SIGINT, as shells have it."""
EXIT_BROKEN_PIPE: Final = 141
"""128 and the number of SIGPIPE."""

_INT32_MAX: Final = (1 << 31) - 1

Command = Callable[[Client, argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit code."""
    arguments = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal without UTF-8 shows what it cannot show as escapes, instead of failing.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        # Here, where it is handled, and not at exit, when the reader of a pipe has gone.
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has enough. Python would flush again at exit, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code


def _run(arguments: argparse.Namespace) -> int:
    run: Command = arguments.run
    try:
        with Client(arguments.target) as client:
            return run(client, arguments)
    except CallError as error:
        note(f"keek: {_explained(error, arguments.target)}")
    except BrokenPipeError:
        raise
    except OSError as error:
        note(f"keek: {error.filename}: {error.strerror}" if error.filename else f"keek: {error}")
    return EXIT_FAILED


def _explained(error: CallError, target: str) -> str:
    """The error on one line, with what to do about it."""
    name = error.code.name
    if isinstance(error, InvalidArgumentError) and error.violations:
        return f"{name}: " + "; ".join(f"{v.field}: {v.description}" for v in error.violations)
    if isinstance(error, UnavailableError):
        if not error.details.reason:
            # Not from a Keek server, which gives a reason: nothing answers there.
            return f"{name}: no server answers at {target} (--target or KEEK_TARGET): {error.message}"
        if error.retry_after_s is not None:
            return f"{name}: {error.message}; try again in {error.retry_after_s:g} s"
    if isinstance(error, DeadlineExceededError):
        return f"{name}: no answer from {target} in time; --timeout-s gives it longer"
    return f"{name}: {error.message}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("keek", description="Feeds of short videos, and what changes them.")
    parser.add_argument("--version", action="version", version=f"keek {VERSION}")
    _add_common(parser)
    parser.set_defaults(target=os.environ.get("KEEK_TARGET") or DEFAULT_TARGET, timeout_s=None, json=False)
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    def command(name: str, run: Command, summary: str, description: str = "") -> argparse.ArgumentParser:
        added = subparsers.add_parser(name, help=summary, description=description or f"{summary}.")
        _add_common(added)
        added.set_defaults(run=run)
        return added

    _add_feeds(command)
    _add_interactions(command)
    _add_videos(command)
    return parser


Adder = Callable[..., argparse.ArgumentParser]


def _add_common(parser: argparse.ArgumentParser) -> None:
    """Options that may stand before the command and behind it."""
    # Without a default of their own: behind the command it would win over what stood before it.
    parser.add_argument(
        "--target",
        default=argparse.SUPPRESS,
        help=f"host:port of the server; $KEEK_TARGET, or {DEFAULT_TARGET}, when not given",
    )
    parser.add_argument(
        "--timeout-s", type=_seconds, default=argparse.SUPPRESS, help="deadline of each call, in seconds"
    )
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="one JSON object a line"
    )


def _add_feeds(command: Adder) -> None:
    feed = command("feed", commands.feed, "A user's feed")
    feed.add_argument("user", metavar="USER", type=_id)
    feed.add_argument("--count", type=_positive, default=10, help="items wanted (10)")
    feed.add_argument("--page-size", type=_positive, help="items asked for at a time")
    feed.add_argument("--stream", action="store_true", help="all pages in one call, shown as they come")
    explain = command("explain", commands.explain, "Why videos are in a user's feed or absent")
    explain.add_argument("user", metavar="USER", type=_id)
    explain.add_argument("videos", metavar="VIDEO", type=_id, nargs="*")
    explain.add_argument("--page-size", type=_positive, default=10, help="items of the feed (10)")
    trending = command("trending", commands.trending, "What many users like at the moment")
    trending.add_argument("--count", type=_positive, default=10, help="videos wanted (10)")
    trending.add_argument("--rising", action="store_true", help="by how fast it grows, not how much it is")
    scope = trending.add_mutually_exclusive_group()
    scope.add_argument("--tag", type=_id, default="", help="only among videos of this tag")
    scope.add_argument("--region", type=_id, default="", help="only what is liked in this region")
    trending.add_argument("--watch", action="store_true", help="the list again at each change, until Ctrl-C")


def _add_interactions(command: Adder) -> None:
    for kind in ("like", "save", "view", "share", "skip"):
        record = command(kind, commands.record, f"Records a {kind}")
        record.add_argument("user", metavar="USER", type=_id)
        record.add_argument("video", metavar="VIDEO", type=_id)
        record.add_argument("--event-id", type=_id, help="UUID of an interaction that is recorded again")
        record.add_argument("--region", type=_id, default="", help="where it happened")
        record.add_argument(
            "--wait-for-feed", action="store_true", help="return when the next feed reflects it"
        )


def _add_videos(command: Adder) -> None:
    importer = command("import", import_videos, "Imports videos from a CSV file", DESCRIPTION)
    importer.add_argument("file", metavar="FILE", type=Path)
    videos = command("videos", commands.videos, "The catalogue")
    videos.add_argument("--owner", type=_id, default="", help="only this owner's videos")
    videos.add_argument("--count", type=_positive, help="videos wanted (all)")
    video = command("video", commands.video, "One video's metadata")
    video.add_argument("video", metavar="VIDEO", type=_id)


def _id(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("not valid UTF-8") from None
    return text


def _positive(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= _INT32_MAX):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    # Also false for NaN. gRPC counts deadlines in 64-bit nanoseconds.
    if not 0.0 < seconds <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
