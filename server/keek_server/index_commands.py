"""`keek-server index bench` and `index tune`: a release's index measured, and other kinds beside it."""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, get_args

from keek_server.command import Command
from keek_server.console import Progress
from keek_server.errors import NotFoundError, SetupError
from keek_server.index_report import (
    Found,
    bench_curves,
    bench_found,
    print_bench,
    print_tune,
    tune_curves,
    tune_found,
)
from keek_server.releases.manifest import MANIFEST_FILE
from keek_server.releases.queries import halves, queries_of, user_vectors
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.release import Release
from keek_server.retrieval.build import IndexOptions, kind_of
from keek_server.retrieval.index import RECALL_AT, FaissIndex
from keek_server.retrieval.kinds import MainKind
from keek_server.retrieval.measure import compare, depths, ladder
from keek_server.retrieval.plots import Curves, check_plot, draw_plot, text_plot
from keek_server.retrieval.rebuild import build_kinds, compare_kinds, fastest
from keek_server.settings import Settings
from keek_server.storage.database import open_database

KINDS: Final[tuple[MainKind, ...]] = get_args(MainKind)

_SLOW: Final[MainKind] = "hnsw"
_CUT_OFF: Final = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` reads."""
    subparsers = parser.add_subparsers(dest="index_command", required=True)
    bench = subparsers.add_parser(
        "bench", help="recall and latency of a release's index, by effort and by depth"
    )
    _add_common(bench)
    bench.add_argument(
        "--k", metavar="N", type=_count, default=RECALL_AT, help="rows a search (default: 100)"
    )
    tune = subparsers.add_parser(
        "tune", help="build other kinds of index over a release's vectors, and compare them; changes nothing"
    )
    _add_common(tune)
    tune.add_argument(
        "--kinds",
        nargs="+",
        choices=KINDS,
        default=[kind for kind in KINDS if kind != _SLOW],
        help=f"default: all but {_SLOW}, which takes long to build",
    )
    tune.add_argument("--recall", metavar="SHARE", type=_share, help="target (default: as the settings say)")
    tune.add_argument(
        "--memory-mib",
        metavar="N",
        type=_count,
        help="what the index may take (default: as the settings say)",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "release", metavar="RELEASE", nargs="?", help="a release's id; the active one by default"
    )
    parser.add_argument(
        "--queries", metavar="N", type=_count, default=500, help="users that ask, at most (default: 500)"
    )
    parser.add_argument("--rounds", metavar="N", type=_count, default=5, help="turns of timing (default: 5)")
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=_picture,
        help="recall against latency, .png or .svg; by default as text",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")


def _count(text: str) -> int:
    if not text.isdecimal() or (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return number


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0, at most 1")
    return share


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in {".png", ".svg"}:
        raise argparse.ArgumentTypeError(f"{text!r} ends neither in .png nor in .svg")
    return path


async def run(arguments: argparse.Namespace, settings: Settings) -> None:
    """Measures, and prints what was found.

    Raises:
        NotFoundError: When there is no such release on this machine.
        SetupError: When there is no active release, too few users, or no way to draw the plot.
        UnavailableError: When the database is lost on the way.
    """
    if arguments.plot is not None:
        check_plot(arguments.plot)
    folder = await _folder(arguments.release, settings)
    with _ends_at_once(), tempfile.TemporaryDirectory(prefix="keek-index-") as scratch:
        if arguments.index_command == "bench":
            found = await asyncio.to_thread(_bench, folder, arguments)
            _show(found, print_bench, bench_curves(found), arguments)
        else:
            found = await asyncio.to_thread(_tune, folder, arguments, settings, Path(scratch))
            _show(found, print_tune, tune_curves(found), arguments)


async def _folder(release_id: str | None, settings: Settings) -> Path:
    """Of the release, or of the active one."""
    if release_id is None:
        async with open_database(settings) as database:
            release_id = await ReleaseRegistry(database).active()
        if release_id is None:
            raise SetupError("no release is active yet: publish one, or name one")
    folder = settings.release_dir / release_id
    if Path(release_id).name != release_id or not (folder / MANIFEST_FILE).is_file():
        raise NotFoundError(f"there is no release {release_id!r} in {settings.release_dir}")
    return folder


@contextmanager
def _ends_at_once() -> Iterator[None]:
    """A thread that builds an index cannot be told to stop, so the process ends: nothing is left to do."""
    try:
        yield
    except asyncio.CancelledError:
        if sys.stderr.isatty():
            sys.stderr.write("\n")
        os._exit(_CUT_OFF)


def _bench(folder: Path, arguments: argparse.Namespace) -> Found:
    release = _opened(folder)
    report, vectors = release.manifest.index, release.corpus.vectors
    users = user_vectors(folder)
    queries = queries_of(release, users, arguments.queries)
    if queries.source == "videos":
        print(
            f"release {release.id} holds {len(users)} users, too few to ask: some of its videos ask in their"
            " place, and recall is not that of feeds",
            file=sys.stderr,
        )
    if not isinstance(release.index, FaissIndex):
        raise SetupError(
            f"the index of release {release.id} is no file: {report.kind} is measured where it runs"
        )
    k = min(arguments.k, len(vectors))
    rungs = ladder(release.index, report, k)
    with Progress("steps") as progress:
        measured = compare(
            rungs, vectors, queries.vectors, k, rounds=arguments.rounds, progress=progress.show
        )
    reached = depths(release.index, report, vectors, queries.vectors)
    return bench_found(release, k, queries, rungs, measured, reached)


def _tune(folder: Path, arguments: argparse.Namespace, settings: Settings, scratch: Path) -> Found:
    release = _opened(folder)
    vectors = release.corpus.vectors
    tuning, asking = halves(user_vectors(folder), arguments.queries)
    options = IndexOptions(
        settings.index_exact_below,
        arguments.recall or settings.index_recall_target,
        arguments.memory_mib or settings.index_memory_mib,
    )
    kinds = list(dict.fromkeys(arguments.kinds))
    with Progress("kinds built") as progress:
        built = build_kinds(kinds, vectors, tuning, options, scratch, progress.show)
    with Progress("steps") as progress:
        measured, exact_ms = compare_kinds(
            built, vectors, asking, rounds=arguments.rounds, progress=progress.show
        )
    best = fastest(measured, options.recall_target, options.memory_mib)
    return tune_found(
        release,
        measured,
        exact_ms,
        best,
        k=min(RECALL_AT, len(vectors)),
        tuned_with=len(tuning),
        queries=len(asking),
        recall_target=options.recall_target,
        memory_mib=options.memory_mib,
        planned=settings.index_kind or kind_of(len(vectors), vectors.shape[1], IndexOptions.of(settings)),
    )


def _opened(folder: Path) -> Release:
    release = Release.open(folder)
    if not len(release.corpus.ids):
        raise SetupError(f"release {release.id} holds no video")
    return release


def _show(
    found: Found, print_found: Callable[[Found], None], curves: Curves, arguments: argparse.Namespace
) -> None:
    if arguments.json:
        print(json.dumps(found))
    else:
        print_found(found)
    if arguments.plot is not None:
        draw_plot(curves, f"release {found['release']}, {found['videos']:,} videos", arguments.plot)
    elif not arguments.json:
        print(text_plot(curves))


INDEX = Command("measure the index of a release, or build other kinds beside it", run, add_arguments)
