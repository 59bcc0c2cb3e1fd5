"""`keek-server export` and `rebuild-projection`: arguments, and what each prints."""

import argparse
import sys

from keek_server.clock import iso_us
from keek_server.command import Command
from keek_server.console import Progress
from keek_server.embedded.running import with_running_stack
from keek_server.interactions.export import read_pages
from keek_server.interactions.rebuild import rebuild_projection
from keek_server.settings import Settings
from keek_server.storage.database import open_database


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run_export` reads."""
    parser.add_argument(
        "--format",
        choices=("csv", "parquet"),
        default="csv",
        help="csv is the prototype's interaction_log.csv, parquet has every column (default: csv)",
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        type=parse_since,
        default=0,
        help="only what was recorded then or later; ISO 8601, in UTC where it names no zone",
    )
    parser.add_argument(
        "--watched",
        action="store_true",
        help="a CSV also says how long videos were watched, in a column of its own, watched_s",
    )
    parser.add_argument("--out", metavar="FILE", required=True, help="or - for csv to standard output")


def parse_since(text: str) -> int:
    """Microseconds since the epoch; for argparse, which turns the error into a usage message."""
    if (time_us := iso_us(text)) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: ISO 8601 is expected")
    return time_us


async def run_export(arguments: argparse.Namespace, settings: Settings) -> None:
    """Writes the log to a file; prints how many rows it has.

    Raises:
        SetupError: When the file cannot be written, or there is no database.
        UnavailableError: When the database is lost on the way.
    """
    # Arrow's libraries are for this command alone: a server neither loads nor keeps them.
    from keek_server.interactions.export_files import STANDARD_OUTPUT, open_export

    count = 0
    async with open_database(settings) as database:
        with (
            Progress("rows", shown=sys.stderr.isatty()) as progress,
            open_export(arguments.format, arguments.out, watched=arguments.watched) as write,
        ):
            async for page in read_pages(database, since_us=arguments.since):
                write(page.rows)
                count += len(page.rows)
                progress.show(page.seq, page.last_seq)
    to_stdout = arguments.out == STANDARD_OUTPUT
    print(f"{count:,} interactions exported", file=sys.stderr if to_stdout else sys.stdout)


async def run_rebuild(_arguments: argparse.Namespace, settings: Settings) -> None:
    """Has the projection built anew; prints how many rows of the log it is built from.

    Raises:
        SetupError: When the database or Redis cannot be reached.
        UnavailableError: When Redis is lost on the way.
    """
    if settings.redis_url is None:
        settings = with_running_stack(settings) or settings
    with Progress("rows of the log") as progress:
        async for step in rebuild_projection(settings):
            progress.show(step.seq, step.last_seq)
    print(f"the projection was built anew, up to row {step.seq:,} of the log")


EXPORT = Command("write the log to a file", run_export, add_export_arguments)
REBUILD = Command("build the projection anew from the log, while servers run", run_rebuild)
