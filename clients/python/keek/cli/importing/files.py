"""One file of an import: uploaded, there already, or refused."""

import hashlib
from pathlib import Path
from typing import Final

from keek.cli.importing.journal import Counts
from keek.cli.output import problem
from keek.client import Client
from keek.errors import AlreadyExistsError, FileChangedError, InvalidArgumentError, NotFoundError
from keek.sources import open_regular
from keek.uploads import Progress, upload_id_of
from keek.v1.video_service_pb2 import Video, VideoState

_STORED: Final = (VideoState.VIDEO_STATE_EMBEDDING, VideoState.VIDEO_STATE_READY)

REFUSALS: Final = (InvalidArgumentError, NotFoundError, FileChangedError, OSError)
"""What is wrong with one file and says nothing about the next one."""


def digest(path: Path) -> bytes:
    """SHA-256 of a file's content.

    Raises:
        OSError: The file cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").digest()


def upload_once(
    client: Client, path: Path, video: Video, *, timeout_s: float | None, progress: Progress | None = None
) -> Counts:
    """Uploads a file unless this content is stored as this video; goes on where it was cut off.

    A video that has a file keeps it.

    Returns:
        One file that was uploaded, or that is unchanged: unverified, too, when the server does not
        know its content.

    Raises:
        CallError: As `Client.upload_video`; of REFUSALS those that are about this file.
    """
    upload_id = upload_id_of(video.video_id, digest(path))
    if _is_stored(client, upload_id, timeout_s):
        return Counts(unchanged_count=1)
    try:
        client.upload_video(path, video, upload_id=upload_id, progress=progress, timeout_s=timeout_s)
    except AlreadyExistsError:
        # Of an upload that the server does not know any more, or of another file.
        return Counts(unchanged_count=1, unverified_count=1)
    return Counts(uploaded_count=1)


def _is_stored(client: Client, upload_id: str, timeout_s: float | None) -> bool:
    try:
        return client.get_upload(upload_id, timeout_s=timeout_s).state in _STORED
    except NotFoundError:
        return False


def refusal(error: Exception) -> str:
    """Why a file is left out, on one line."""
    if isinstance(error, InvalidArgumentError):
        return problem(error)
    if isinstance(error, NotFoundError):
        return "it was uploaded before, and the video was deleted"
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
