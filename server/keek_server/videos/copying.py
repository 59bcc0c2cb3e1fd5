"""Copies a file from whatever storage into a local one."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec

from keek_server.errors import BadMediaError, InvalidArgumentError, MediaProblem
from keek_server.videos.sources import is_web

_CHUNK = 2**20


async def _refuse_redirect(response: Any) -> None:
    if 300 <= response.status < 400:
        raise InvalidArgumentError.of("source_url", "is redirected: give the URL that the file is at")


# A redirect could lead anywhere, into the server's own network, too.
_WEB_OPTIONS = {"allow_redirects": False, "client_kwargs": {"raise_for_status": _refuse_redirect}}


class Copy:
    """One copy. A thread that hangs in a storage cannot be stopped: it is told that nobody waits any more."""

    def __init__(self, url: str, target: Path, max_bytes: int, place: tuple[Any, str] | None) -> None:
        """
        Args:
            url: Of the file.
            target: The local file.
            max_bytes: The most that it may have.
            place: fsspec's file system, and the path there; found by the URL when None.
        """
        self._url = url
        self._target = target
        self._max_bytes = max_bytes
        self._place = place
        self.abandoned = threading.Event()
        """When it is set the copying ends, and the target is removed, as soon as the storage answers."""

    def run(self) -> None:
        """Copies; blocks.

        Raises:
            BadMediaError: When the file is too large.
            InvalidArgumentError: When a web server says that it is elsewhere.
            Exception: What the storage raises.
        """
        try:
            with self._open() as source, self._target.open("wb") as file:
                for content in self._chunks(source):
                    file.write(content)
        finally:
            if self.abandoned.is_set():
                self._target.unlink(missing_ok=True)

    def _open(self) -> Any:
        if self._place is None and is_web(self._url):
            fs, path = fsspec.core.url_to_fs(self._url, **_WEB_OPTIONS)
            # In one piece: not every web server gives parts. The size is of no use then, and not asked for.
            return fs.open(path, "rb", block_size=0, size=1)
        fs, path = self._place or fsspec.core.url_to_fs(self._url)
        return fs.open(path, "rb")

    def _chunks(self, source: Any) -> Iterator[bytes]:
        left = self._max_bytes
        while not self.abandoned.is_set() and (content := source.read(_CHUNK)):
            left -= len(content)
            if left < 0:
                raise BadMediaError(MediaProblem.TOO_LARGE, f"is larger than {self._max_bytes:,} bytes")
            yield content
