"""`keek-train import` and `keek-train synth`: arguments, and what each prints and returns."""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TypeAlias

from keek_server.errors import SetupError
from keek_server.storage.database import Database
from keek_training.datasets import prototype
from keek_training.datasets.dataset import Dataset, Problem
from keek_training.datasets.kuairand import PARTS
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import import_dataset, load_videos
from keek_training.datasets.synth import SynthConfig, parse_config, synthesise
from keek_training.datasets.write import WRITERS

_PROBLEMS_SHOWN = 50

# argparse gives what add_subparsers returns no public name.
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001


def add_arguments(subparsers: Subparsers) -> None:
    """Adds the commands `import`, for `run_import`, and `synth`, for `run_synth`."""
    _add_import(subparsers)
    _add_synth(subparsers)


def _add_import(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("import", help="read a data set into the database")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "spec",
        nargs="?",
        metavar="SPEC",
        help="kuairand:DIR, movielens:DIR, tiktok:DIR, prototype:DIR, table:DIR, or synth[:key=value,...]",
    )
    source.add_argument(
        "--interactions",
        metavar="FILE",
        type=Path,
        help="the prototype's interaction_log.csv alone, with videos that are in the database",
    )
    parser.add_argument(
        "--videos", metavar="FILE", type=Path, help="for --interactions: the prototype's videos.csv"
    )
    parser.add_argument(
        "--columns",
        metavar="NAME=COLUMN,...",
        type=parse_columns,
        help="for table:DIR: where Keek's columns are, as user_id=uid,video_id=iid,kind==like",
    )
    parser.add_argument("--part", choices=PARTS, help="for kuairand:DIR and tiktok:DIR (default: train)")


def _add_synth(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser("synth", help="write a synthetic data set to files")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write to")
    parser.add_argument("--format", choices=sorted(WRITERS), default="parquet", help="(default: parquet)")
    defaults = SynthConfig()
    for name in ("users", "videos", "interactions", "days", "seed"):
        parser.add_argument(f"--{name}", type=int, help=f"(default: {getattr(defaults, name)})")
    parser.add_argument("--end", metavar="TIME", help="ISO 8601 (default: the last midnight, UTC)")


def parse_columns(text: str) -> dict[str, str]:
    """Reads `name=column,...`; for argparse, which turns the error into a usage message."""
    columns = {}
    for pair in text.split(","):
        name, separator, column = pair.partition("=")
        if not (name and separator and column):
            raise argparse.ArgumentTypeError(f"{pair!r} is not NAME=COLUMN")
        columns[name.strip()] = column.strip()
    return columns


async def run_import(arguments: argparse.Namespace, database: Database) -> int:
    """Imports what `arguments` name; reports every problem with its file and line.

    Returns:
        The exit code: 0, or 1 when there were problems, though all that is good was imported.

    Raises:
        SetupError: When there is no such data set.
        UnavailableError: When the database is down or late.
    """
    dataset = await _open(arguments, database)
    report_problems(dataset.problems)
    summary = await import_dataset(
        database,
        dataset,
        store_videos=arguments.interactions is None or arguments.videos is not None,
        progress=sys.stderr.isatty(),
    )
    print(
        f"{dataset.name}: {summary.videos_created:,} videos created, {summary.videos_updated:,} updated; "
        f"{summary.interactions_created:,} interactions created, "
        f"{summary.interactions_duplicate:,} known already; "
        f"{len(dataset.problems):,} problems"
    )
    return 1 if dataset.problems else 0


async def run_synth(arguments: argparse.Namespace) -> int:
    """Writes a synthetic data set; returns the exit code.

    Raises:
        SetupError: When an option is out of its range, or the folder cannot be written.
    """
    given = vars(arguments)
    options = ("users", "videos", "interactions", "days", "seed", "end")
    spec = ",".join(f"{name}={given[name]}" for name in options if given[name] is not None)
    dataset = await asyncio.to_thread(synthesise, parse_config(spec))
    files = await asyncio.to_thread(_write, dataset, arguments.out, arguments.format)
    print(f"{dataset.videos.num_rows:,} videos and {dataset.interactions.num_rows:,} interactions in:")
    for file in files:
        print(f"  {file}")
    return 0


async def _open(arguments: argparse.Namespace, database: Database) -> Dataset:
    """Reads what is imported; that takes seconds, and so is not done on the event loop."""
    log: Path | None = arguments.interactions
    if log is None:
        if arguments.videos is not None:
            raise SetupError("--videos is for --interactions")
        return await asyncio.to_thread(
            open_dataset, arguments.spec, columns=arguments.columns, part=arguments.part
        )
    if arguments.columns is not None or arguments.part is not None:
        raise SetupError("--columns and --part are for a SPEC, not for --interactions")
    if arguments.videos is not None:
        return await asyncio.to_thread(prototype.read_files, log, arguments.videos)
    return await asyncio.to_thread(prototype.read_log, log, await load_videos(database))


def report_problems(problems: list[Problem]) -> None:
    """Prints the first problems as `file:line: reason`, and how many more there are, to standard error."""
    for problem in problems[:_PROBLEMS_SHOWN]:
        print(f"{problem.file}:{problem.line}: {problem.reason}", file=sys.stderr)
    if (more := len(problems) - _PROBLEMS_SHOWN) > 0:
        print(f"... and {more:,} problems more", file=sys.stderr)


def _write(dataset: Dataset, folder: Path, layout: str) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return WRITERS[layout](dataset, folder)
    except OSError as error:
        raise SetupError(f"cannot write to {folder}: {error.strerror}") from error
