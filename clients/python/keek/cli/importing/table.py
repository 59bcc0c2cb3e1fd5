"""Imports the videos of a table: the good lines are imported, the others reported."""

import os.path
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from keek.cli.importing.files import REFUSALS, refusal, upload_once
from keek.cli.importing.journal import Counts, Journal
from keek.cli.importing.parallel import Task
from keek.cli.importing.rows import Line, Malformed, Row, Unread
from keek.cli.progress import Progress
from keek.client import Client
from keek.errors import InvalidArgumentError
from keek.messages import MAX_BATCH_ITEMS, Batcher
from keek.v1.video_service_pb2 import Video

_VIDEO_PATH: Final = re.compile(r"videos\[(\d+)\]\.?")

_UPDATED_FIELDS: Final = ("owner_id", "tags", "title", "language", "region")
"""Of a video whose file is there already; its duration is what the server measured."""


@dataclass(slots=True)
class Chunk:
    """Lines that are done together."""

    rows: list[Row] = field(default_factory=list)
    bad_lines: list[int] = field(default_factory=list)

    @property
    def lines(self) -> list[int]:
        """Numbers of all lines, good and bad."""
        return [row.line for row in self.rows] + self.bad_lines


@dataclass(slots=True)
class TableImport:
    """One run over one table."""

    client: Client
    path: Path
    journal: Journal | None
    counts: Counts
    progress: Progress
    timeout_s: float | None = None
    clip_model: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tasks(self, lines: Iterable[Line]) -> Iterator[Task]:
        """What is to be done for each chunk of the table.

        Each task raises CallError when the server cannot take what it should do.
        """
        for chunk in self._chunks(lines):
            yield partial(self._do, chunk)

    def _chunks(self, lines: Iterable[Line]) -> Iterator[Chunk]:
        """One a batch of metadata, and one a file to upload."""
        batcher, chunk = Batcher[Video](), Chunk()
        for line in lines:
            if isinstance(line, Row):
                if line.file:
                    yield Chunk([line])
                    continue
                if batcher.add(line.video):
                    yield chunk
                    chunk = Chunk()
                chunk.rows.append(line)
            elif isinstance(line, Malformed):
                self._report(line.line, line.reason)
                chunk.bad_lines.append(line.line)
                if len(chunk.bad_lines) == MAX_BATCH_ITEMS:
                    batcher.rest()
                    yield chunk
                    chunk = Chunk()
            else:
                self._note_unread(line)
        if chunk.rows or chunk.bad_lines:
            yield chunk

    def _do(self, chunk: Chunk) -> None:
        counts = Counts(refused_count=len(chunk.bad_lines))
        for row in chunk.rows:
            if row.file:
                self._upload(row, counts)
        self._send({row.line: row.video for row in chunk.rows if not row.file}, counts)
        lines = chunk.lines
        with self.lock:
            self.counts.add(counts)
        if self.journal is not None:
            self.journal.lines_done(lines, counts)
        self.progress.advance(len(lines))

    def _send(self, batch: dict[int, Video], counts: Counts) -> None:
        """Sends one batch; lines that the server refuses are reported, and the rest is sent again."""
        while batch:
            try:
                done = self.client.import_videos(
                    batch.values(), clip_model=self.clip_model, timeout_s=self.timeout_s
                )
            except InvalidArgumentError as error:
                refused = _refused(error, list(batch))
                if not refused:
                    raise
                for line, reason in refused.items():
                    self._report(line, reason)
                    counts.refused_count += 1
                    del batch[line]
            else:
                counts.created_count += done.created_count
                counts.updated_count += done.updated_count
                return

    def _upload(self, row: Row, counts: Counts) -> None:
        """Uploads a file with the metadata of its line, or brings the latter up to date."""
        try:
            path = _below(self.path.parent, row.file)
            done = upload_once(self.client, path, row.video, timeout_s=self.timeout_s)
            if done.unchanged_count:
                self.client.update_video(row.video, _UPDATED_FIELDS, timeout_s=self.timeout_s)
            counts.add(done)
        except (ValueError, *REFUSALS) as error:
            self._report(row.line, f"{row.file}: {refusal(error)}")
            counts.refused_count += 1

    def _report(self, line: int, reason: str) -> None:
        self.progress.note(f"{self.path}:{line}: {reason}")

    def _note_unread(self, unread: Unread) -> None:
        self.progress.note(f"{self.path}:1: not read: {', '.join(unread.names)}")


def _below(folder: Path, file: str) -> Path:
    """
    Raises:
        ValueError: The path leads out of the folder, by itself or through a link. A table from
            elsewhere could else make the program send any file of this machine.
    """
    # Not Path.resolve: it raises RuntimeError for links in a circle, which the open will report.
    root, path = (Path(os.path.realpath(each)) for each in (folder, folder / file))
    if not path.is_relative_to(root):
        raise ValueError("is not below the folder of the table")
    return path


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
