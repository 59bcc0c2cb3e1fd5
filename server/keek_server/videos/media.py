"""Where uploaded files are kept: a folder, or object storage, through fsspec."""

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from keek_server.errors import (
    BadMediaError,
    InvalidArgumentError,
    MediaProblem,
    NotFoundError,
    SetupError,
    UnavailableError,
)
from keek_server.files import written_aside
from keek_server.settings import Settings

T = TypeVar("T")

_THREADS = 8
_CHUNK = 2**20
_SLOWEST_BYTES_PER_S = 4 * 2**20
"""What large files may take beyond the deadline."""
# What fsspec raises depends on the storage: its own library's errors, too, are not all OSError.
_GONE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class MediaStore:
    """Reads and writes files in threads of its own. A file gets its name when it is complete."""

    def __init__(self, settings: Settings, executor: ThreadPoolExecutor, scratch: Path) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(settings.media_url, **settings.media_options)
        except (ImportError, ValueError) as error:
            raise SetupError(
                f"cannot keep files in {settings.media_url}: {error} (KEEK_MEDIA_URL)"
            ) from error
        self._executor = executor
        self._deadline_s = settings.media_deadline_s
        self._sources = settings.video_sources
        self.scratch = scratch
        """A local folder for files that are worked on; it goes with this process."""

    async def put_part(self, upload_id: uuid.UUID, offset: int, content: bytes) -> None:
        """Stores a part of an upload durably.

        Raises:
            UnavailableError: When the storage is down or late, as for every method here.
        """
        await self._run(self._write, f"{self._parts(upload_id)}/{offset:015d}", content)

    async def append(self, target: Path, content: bytes) -> None:
        """Appends to a local file."""
        await self._run(_append, target, content)

    async def append_parts(self, upload_id: uuid.UUID, target: Path, size: int) -> None:
        """Writes the first `size` bytes of an upload into a local file, from its parts.

        Raises:
            NotFoundError: When a part is missing.
        """
        folder = self._parts(upload_id)
        names = sorted(await self._run(lambda: self._fs.ls(folder, detail=False)))
        position = 0
        for name in names:
            offset = int(name.rpartition("/")[2])
            if offset > position or position >= size:
                break
            content: bytes = await self._run(self._fs.cat_file, name)
            await self.append(target, content[position - offset : size - offset])
            position = max(position, min(size, offset + len(content)))
        if position < size:
            raise NotFoundError(f"bytes from {position} on of upload {upload_id} are missing")

    async def drop_parts(self, upload_id: uuid.UUID) -> None:
        """Removes the parts of an upload."""
        folder = self._parts(upload_id)

        def drop() -> None:
            if self._fs.exists(folder):
                self._fs.rm(folder, recursive=True)

        await self._run(drop)

    async def put(self, name: str, content: bytes | Path) -> str:
        """Stores a whole file.

        Returns:
            Its URL.
        """
        path = f"{self._root}/{name}"
        size = await self._run(_size_of, content)
        await self._run(self._write, path, content, size_bytes=size)
        return str(self._fs.unstrip_protocol(path))

    async def remove(self, url: str) -> None:
        """Removes a file that `put` stored; others, and one that is gone, stay as they are."""
        path = self._own_path(url)

        def remove() -> None:
            if path is not None and self._fs.exists(path):
                self._fs.rm_file(path)

        await self._run(remove)

    async def fetch(self, url: str, target: Path, *, max_bytes: int) -> None:
        """Copies an original into a local file.

        Raises:
            NotFoundError: When there is none.
            BadMediaError: When it is larger than `max_bytes`.
        """
        own = self._own_path(url)
        fs, path = (self._fs, own) if own is not None else fsspec.core.url_to_fs(url)
        await self._run(_copy, fs, path, target, max_bytes, size_bytes=max_bytes)

    def check_source(self, url: str) -> str:
        """What a caller named, made plain: without `..` and symbolic links.

        Raises:
            InvalidArgumentError: When it lies under none of the allowed prefixes.
        """
        plain = _plain(url)
        if not any(_lies_under(plain, _plain(prefix)) for prefix in self._sources):
            raise InvalidArgumentError.of("source_url", "lies under no prefix that this server allows")
        return plain

    def _parts(self, upload_id: uuid.UUID) -> str:
        return f"{self._root}/uploads/{upload_id.hex}"

    def _own_path(self, url: str) -> str | None:
        """The path of a file of this store; None for any other."""
        prefix = f"{self._fs.unstrip_protocol(self._root)}/"
        return f"{self._root}/{url.removeprefix(prefix)}" if url.startswith(prefix) else None

    def _write(self, path: str, content: bytes | Path) -> None:
        if isinstance(self._fs, LocalFileSystem):
            local = Path(path)
            local.parent.mkdir(parents=True, exist_ok=True)
            with written_aside(local, local.with_name(f".{uuid.uuid4().hex}")) as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file, _CHUNK)
        elif isinstance(content, bytes):
            self._fs.pipe_file(path, content)
        else:
            self._fs.put_file(str(content), path)

    async def _run(self, work: Callable[..., T], *arguments: Any, size_bytes: int = 0) -> T:
        loop = asyncio.get_running_loop()
        deadline_s = self._deadline_s + size_bytes / _SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout(deadline_s):
                return await loop.run_in_executor(self._executor, work, *arguments)
        except TimeoutError as error:
            raise UnavailableError(f"the storage took longer than {deadline_s:g} s") from error
        except _GONE as error:
            raise NotFoundError("a file is missing in the storage") from error
        except OSError as error:
            raise UnavailableError("the storage is not reachable") from error


@asynccontextmanager
async def open_media(settings: Settings) -> AsyncIterator[MediaStore]:
    """The store at `media_url`, and a scratch folder that is removed at the end.

    Raises:
        SetupError: When there is no such storage.
    """
    parent = settings.scratch_dir or settings.data_dir / "tmp"
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"cannot work in {parent}: {error.strerror} (KEEK_SCRATCH_DIR)") from error
    executor = ThreadPoolExecutor(_THREADS, "media")
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix="uploads-") as scratch:
            yield MediaStore(settings, executor, Path(scratch))
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _size_of(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _append(target: Path, content: bytes) -> None:
    with target.open("ab") as file:
        file.write(content)


def _copy(fs: Any, path: str, target: Path, max_bytes: int) -> None:
    with fs.open(path, "rb") as source, target.open("wb") as file:
        left = max_bytes
        while content := source.read(_CHUNK):
            left -= len(content)
            if left < 0:
                raise BadMediaError(MediaProblem.TOO_LARGE, f"is larger than {max_bytes:,} bytes")
            file.write(content)


def _plain(url: str) -> str:
    """A URL without relative parts; of a local file, with the real path."""
    # For fsspec, `::` begins the URL of another storage.
    if "::" in url:
        raise InvalidArgumentError.of("source_url", "must not be a chain of URLs")
    parts = urlsplit(url)
    if parts.scheme in ("", "file", "local"):
        return f"file://{Path(url.removeprefix(f'{parts.scheme}://')).resolve()}"
    if any(unquote(segment) in (".", "..") for segment in parts.path.split("/")):
        raise InvalidArgumentError.of("source_url", "has relative parts")
    return url


def _lies_under(url: str, prefix: str) -> bool:
    return url == prefix or url.startswith(prefix.rstrip("/") + "/")
