"""Imports a folder: every video file below it is uploaded as a video."""

import hashlib
import os
import stat
import threading
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Final, NamedTuple

from keek.cli.importing.files import REFUSALS, refusal, upload_once
from keek.cli.importing.journal import Counts, FileKey, Journal
from keek.cli.importing.parallel import Task
from keek.cli.progress import Progress, Share
from keek.client import Client
from keek.v1.video_service_pb2 import Video

SUFFIXES: Final = frozenset(
    (".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".webm", ".mkv", ".avi", ".ts", ".mts", ".m2ts")
)
"""Of files that are taken for videos, in small letters: those of the containers that the server takes."""

NOT_TAKEN: Final = frozenset(
    (".mpg", ".mpeg", ".vob", ".flv", ".wmv", ".asf", ".ogv", ".mxf", ".rm", ".rmvb")
)
"""Of videos that the server would refuse by their first bytes."""

_MAX_ID_BYTES: Final = 128
_DIGEST_DIGITS: Final = 16


class Found(NamedTuple):
    """A video file."""

    path: Path
    key: FileKey
    problem: str = ""
    """Why it is left out."""


def video_files(folder: Path) -> list[Found]:
    """All video files below a folder, ordered by path; hidden files and folders are passed over.

    Links are not followed, so that nothing from outside the folder is sent. What cannot be uploaded
    is there with its `problem`, and of size 0.

    Raises:
        OSError: A folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    found: list[Found] = []
    for name, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for file in files:
            path = Path(name, file)
            if path.suffix.lower() in SUFFIXES | NOT_TAKEN and not file.startswith("."):
                found.append(_found(path, path.relative_to(folder).as_posix()))
    return sorted(found, key=lambda each: each.key)


def _found(path: Path, relative: str) -> Found:
    nothing = (relative, 0, 0)
    if (suffix := path.suffix.lower()) in NOT_TAKEN:
        return Found(path, nothing, f"the server takes no {suffix}")
    try:
        status = path.lstat()
    except OSError as error:
        return Found(path, nothing, error.strerror or str(error))
    if stat.S_ISLNK(status.st_mode):
        return Found(path, nothing, "is a symbolic link, which is not followed")
    if not stat.S_ISREG(status.st_mode):
        return Found(path, nothing, "is not a regular file")
    return Found(path, (relative, status.st_size, status.st_mtime_ns))


def video_id_of(relative: str) -> str:
    """The video_id of a file: its path without the extension, as valid text of at most 128 bytes.

    Bytes that are no UTF-8 and characters that cannot be printed become `_`; of a longer path the
    end is replaced by a digest of the whole.
    """
    stem = unicodedata.normalize("NFC", PurePath(relative).with_suffix("").as_posix())
    text = "".join(c if c.isprintable() else "_" for c in stem)
    if len(text.encode()) <= _MAX_ID_BYTES:
        return text
    tail = "-" + hashlib.sha256(os.fsencode(relative)).hexdigest()[:_DIGEST_DIGITS]
    return text.encode()[: _MAX_ID_BYTES - len(tail)].decode(errors="ignore") + tail


@dataclass(slots=True)
class FolderImport:
    """One run over one folder."""

    client: Client
    journal: Journal | None
    counts: Counts
    progress: Progress
    metadata: Video = field(default_factory=Video)
    """What all of its videos have."""
    timeout_s: float | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def tasks(self, files: list[Found]) -> Iterator[Task]:
        """What is to be done for each file that is not done.

        Each task raises CallError when the server cannot take what it should do.
        """
        taken: dict[str, Path] = {}
        for file in files:
            video_id = video_id_of(file.key[0])
            if file.problem:
                self._refuse(file, file.problem)
                self._done(file, Counts(refused_count=1), keep=False)
            elif (other := taken.setdefault(video_id, file.path)) is not file.path:
                reason = f"its video_id {video_id!r} is that of {other}"
                self._refuse(file, reason)
                self._done(file, Counts(refused_count=1), keep=False)
                self.progress.advance(file.key[1])
            elif self.journal is None or file.key not in self.journal.files:
                video = Video(video_id=video_id)
                video.MergeFrom(self.metadata)
                yield partial(self._upload, file, video)

    def _upload(self, file: Found, video: Video) -> None:
        shown = Share(self.progress)
        try:
            counts = upload_once(self.client, file.path, video, timeout_s=self.timeout_s, progress=shown.sent)
        except REFUSALS as error:
            self._refuse(file, refusal(error))
            counts = Counts(refused_count=1)
        shown.sent(file.key[1], file.key[1])
        self._done(file, counts)

    def _refuse(self, file: Found, reason: str) -> None:
        self.progress.note(f"{file.path}: {reason}")

    def _done(self, file: Found, counts: Counts, *, keep: bool = True) -> None:
        with self.lock:
            self.counts.add(counts)
        if keep and self.journal is not None:
            self.journal.file_done(file.key, counts)
