"""`keek videos import`: a folder of files, or a table in CSV or Parquet."""

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from keek.cli.importing.csv_file import read_videos
from keek.cli.importing.folder import FolderImport, video_files
from keek.cli.importing.journal import SUFFIX, Counts, ImportRunningError, Journal, Ranges
from keek.cli.importing.parallel import run_parallel
from keek.cli.importing.parquet_file import TableError, count_rows, is_parquet, read_rows
from keek.cli.importing.rows import COLUMNS
from keek.cli.importing.table import TableImport
from keek.cli.output import note, print_json
from keek.cli.progress import Progress
from keek.client import Client
from keek.v1.video_service_pb2 import Video

EXIT_USAGE: Final = 2


def import_videos(client: Client, arguments: argparse.Namespace) -> int:
    """Imports a folder or a table; 1 when a file or a line was left out."""
    path: Path = arguments.path
    if path.is_dir():
        if arguments.clip_model:
            return _misused("--clip-model is for a table in Parquet")
        run = _import_folder
    else:
        if arguments.owner or arguments.tags or arguments.language or arguments.region:
            return _misused(
                "--owner, --tags, --language and --region are for a folder; a table has columns for them"
            )
        run = _import_table
    counts = Counts()
    try:
        run(client, arguments, counts)
    except ImportRunningError as error:
        note(f"keek: {error}")
        return 1
    except TableError as error:
        note(f"keek: {path}: {error}")
        _print_summary(counts, arguments, is_complete=False)
        return 1
    except BaseException:
        _print_summary(counts, arguments, is_complete=False)
        raise
    _print_summary(counts, arguments, is_complete=True)
    return 1 if counts.refused_count else 0


def _misused(text: str) -> int:
    note(f"keek: {text}")
    return EXIT_USAGE


def _import_folder(client: Client, arguments: argparse.Namespace, counts: Counts) -> None:
    folder: Path = arguments.path
    files = video_files(folder)
    metadata = Video(
        owner_id=arguments.owner, tags=arguments.tags, language=arguments.language, region=arguments.region
    )
    identity = {
        "target": client.target,
        "owner": arguments.owner,
        "tags": tuple(arguments.tags),
        "language": arguments.language,
        "region": arguments.region,
    }
    total = sum(file.key[1] for file in files)
    with _journal(arguments, identity, counts) as journal, Progress(total, "B") as progress:
        if journal is not None:
            progress.skip(sum(file.key[1] for file in files if file.key in journal.files))
        job = FolderImport(client, journal, counts, progress, metadata, timeout_s=arguments.timeout_s)
        run_parallel(job.tasks(files), arguments.jobs, client.close)
        if journal is not None:
            journal.remove()


def _import_table(client: Client, arguments: argparse.Namespace, counts: Counts) -> None:
    path: Path = arguments.path
    status = path.stat()
    identity = {
        "target": client.target,
        "size_bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "clip_model": arguments.clip_model,
    }
    in_rows = is_parquet(path)
    total = count_rows(path) if in_rows else _count_lines(path)
    with (
        _journal(arguments, identity, counts) as journal,
        Progress(total, "rows" if in_rows else "lines") as progress,
    ):
        done = Ranges() if journal is None else journal.lines
        progress.skip(len(done))
        job = TableImport(client, path, journal, counts, progress, arguments.timeout_s, arguments.clip_model)
        lines = read_rows(path, done) if in_rows else read_videos(path, done)
        run_parallel(job.tasks(lines), arguments.jobs, client.close)
        if journal is not None:
            journal.remove()


def _count_lines(path: Path) -> int:
    """Lines behind the header; 0 of what can be read only once."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        newlines = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return max(0, newlines - 1)


@contextlib.contextmanager
def _journal(
    arguments: argparse.Namespace, identity: dict[str, object], counts: Counts
) -> Iterator[Journal | None]:
    """The state file beside the input; None where none can be kept."""
    path: Path = arguments.path
    if not (path.is_file() or path.is_dir()):
        yield None
        return
    # Of a folder given as `.` the name is not known before.
    full = path.resolve()
    state = full.with_name(full.name + SUFFIX)
    try:
        journal = Journal(state, identity, restart=arguments.restart)
    except OSError as error:
        note(f"keek: {state}: {error.strerror}: an import that is cut off will begin anew")
        yield None
        return
    with journal:
        counts.add(journal.counts)
        if journal.was_stale:
            note(f"keek: {state} is of another import, or {path} has changed: everything is imported")
        elif len(journal.lines) or journal.files:
            note(f"keek: goes on where {state} says; --restart begins anew")
        if journal.was_damaged:
            note(f"keek: {state} was damaged: what it does not say any more is done again")
        yield journal


def _print_summary(counts: Counts, arguments: argparse.Namespace, *, is_complete: bool) -> None:
    if arguments.json:
        print_json(asdict(counts))
        return
    parts = []
    if not arguments.path.is_dir():
        imported = counts.created_count + counts.updated_count
        parts.append(
            f"{imported} videos imported ({counts.created_count} new, {counts.updated_count} replaced)"
        )
    if arguments.path.is_dir() or counts.uploaded_count or counts.unchanged_count:
        parts.append(f"{counts.uploaded_count} files uploaded, {_unchanged(counts)}")
    left_out = "files" if arguments.path.is_dir() else "lines"
    end = "" if is_complete else "; not complete: the same command goes on"
    print(f"{', '.join(parts)}, {counts.refused_count} {left_out} left out{end}", flush=True)


def _unchanged(counts: Counts) -> str:
    text = f"{counts.unchanged_count} there already"
    if not counts.unverified_count:
        return text
    return f"{text} ({counts.unverified_count} of them not compared: their videos have files)"


DESCRIPTION: Final = (
    "Imports videos. PATH is a folder, and every video file below it is uploaded, its path without the "
    "extension being its video_id; or a table in CSV or Parquet, a video a line, with the columns "
    f"{', '.join(COLUMNS)} in any order, of which only video_id must be there: duration in seconds, tags "
    "separated by | or ;, file a path below the table's folder to upload. Parquet may have a column "
    "clip_vector of 512 numbers. What is no video is reported as FILE:LINE: REASON, and the exit code is 1. "
    f"What was cut off goes on when the command is repeated, by the state file PATH{SUFFIX}."
)
