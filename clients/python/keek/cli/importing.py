"""`keek import`: the good lines of a file are imported, the others reported."""

import argparse
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from keek.cli.output import note, print_json
from keek.cli.video_csv import COLUMNS, Malformed, Row, read_videos
from keek.client import Client
from keek.errors import InvalidArgumentError
from keek.messages import batches
from keek.v1.video_service_pb2 import Video

_VIDEO_PATH: Final = re.compile(r"videos\[(\d+)\]\.?")


@dataclass(slots=True)
class Summary:
    """What became of the lines of a file."""

    created_count: int = 0
    updated_count: int = 0
    malformed_count: int = 0


@dataclass(slots=True)
class Import:
    """One run over one file."""

    client: Client
    path: Path
    timeout_s: float | None
    summary: Summary = field(default_factory=Summary)
    _lines: deque[int] = field(default_factory=deque)
    """Line numbers of the videos that were read and not yet sent, oldest first."""

    def run(self) -> None:
        """Sends every good line.

        Raises:
            CallError: The server cannot take them; `summary` has what it took before.
            OSError: The file cannot be read.
        """
        for batch in batches(self._videos()):
            self._send({self._lines.popleft(): video for video in batch})

    def _videos(self) -> Iterator[Video]:
        for row in read_videos(self.path):
            if isinstance(row, Row):
                self._lines.append(row.line)
                yield row.video
            elif isinstance(row, Malformed):
                self._report(row.line, row.reason)
            else:
                note(f"{self.path}:1: not read: {', '.join(row.names)}")

    def _send(self, batch: dict[int, Video]) -> None:
        """Sends one batch; lines that the server refuses are reported, and the rest is sent again."""
        while batch:
            try:
                done = self.client.import_videos(batch.values(), timeout_s=self.timeout_s)
            except InvalidArgumentError as error:
                refused = _refused(error, list(batch))
                if not refused:
                    raise
                for line, reason in refused.items():
                    self._report(line, reason)
                    del batch[line]
            else:
                self.summary.created_count += done.created_count
                self.summary.updated_count += done.updated_count
                return

    def _report(self, line: int, reason: str) -> None:
        self.summary.malformed_count += 1
        note(f"{self.path}:{line}: {reason}")


def _refused(error: InvalidArgumentError, lines: list[int]) -> dict[int, str]:
    """Reasons by line, from violations of fields as `videos[3].duration_s`."""
    refused: dict[int, str] = {}
    for violation in error.violations:
        place = _VIDEO_PATH.match(violation.field)
        if place and int(place[1]) < len(lines):
            line = lines[int(place[1])]
            reason = f"{violation.field[place.end() :]}: {violation.description}"
            refused[line] = f"{refused[line]}; {reason}" if line in refused else reason
    return refused


def import_videos(client: Client, arguments: argparse.Namespace) -> int:
    """Imports a file; 1 when a line was left out."""
    job = Import(client, arguments.file, arguments.timeout_s)
    try:
        job.run()
    finally:
        _print_summary(job.summary, as_json=arguments.json)
    return 1 if job.summary.malformed_count else 0


def _print_summary(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        print_json(asdict(summary))
        return
    count = summary.created_count + summary.updated_count
    print(
        f"{count} videos imported ({summary.created_count} new, {summary.updated_count} replaced), "
        f"{summary.malformed_count} lines left out",
        flush=True,
    )


DESCRIPTION: Final = (
    f"Imports videos from a CSV file whose header names its columns: {', '.join(COLUMNS)}; only video_id "
    "must be there. One video a line; duration in seconds; tags separated by | or ;. Lines that are no "
    "videos are reported as FILE:LINE: REASON, and the exit code is 1."
)
