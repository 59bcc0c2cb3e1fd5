"""Where uploaded files are kept: a folder, or object storage, through fsspec."""

import asyncio
import contextlib
import logging
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from keek_server.errors import KeekError, NotFoundError, SetupError, UnavailableError
from keek_server.files import written_aside
from keek_server.settings import Settings
from keek_server.videos.copying import Copy
from keek_server.videos.parts import cover, new_name, parse
from keek_server.videos.scratch import open_scratch
from keek_server.videos.sources import check_prefixes, check_source

logger = logging.getLogger(__name__)

T = TypeVar("T")

ORIGINALS = "originals"
POSTERS = "posters"

_UPLOADS = "uploads"
_THREADS = 8
_SOURCE_THREADS = 4
_CHUNK = 2**20
_SLOWEST_BYTES_PER_S = 4 * 2**20
"""What large files may take beyond the deadline."""
_GONE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class MediaStore:
    """Reads and writes files in threads of its own. A file gets its name when it is complete."""

    def __init__(
        self, settings: Settings, executor: ThreadPoolExecutor, sources: ThreadPoolExecutor, scratch: Path
    ) -> None:
        """
        Args:
            settings: Of the server.
            executor: For the store.
            sources: For files of others, whose storage may hang when the store does not.
            scratch: See the attribute.
        """
        try:
            self._fs, self._root = fsspec.core.url_to_fs(settings.media_url, **settings.media_options)
        except (ImportError, ValueError) as error:
            raise SetupError(
                f"cannot keep files in {settings.media_url}: {error} (KEEK_MEDIA_URL)"
            ) from error
        check_prefixes(settings.video_sources)
        self._executor = executor
        self._source_executor = sources
        self._deadline_s = settings.media_deadline_s
        self._sources = settings.video_sources
        self._names = (settings.media_url.rstrip("/"), str(self._fs.unstrip_protocol(self._root)))
        self.scratch = scratch
        """A local folder for files that are worked on; it goes with this process."""

    async def put_part(self, upload_id: uuid.UUID, offset: int, content: bytes) -> None:
        """Stores a part of an upload durably, beside others of the same bytes.

        Raises:
            UnavailableError: When the storage is down or late, as for every method here.
        """
        path = f"{self._folder(_UPLOADS, upload_id)}/{new_name(offset, len(content))}"
        await self._run(self._write, path, content)

    async def append(self, target: Path, content: bytes) -> None:
        """Appends to a local file, which is made when there is none."""
        await self._run(_append, target, content)

    async def append_parts(self, upload_id: uuid.UUID, target: Path, size: int) -> int:
        """Writes the first `size` bytes of an upload into a local file, from its parts.

        Returns:
            How many bytes there are: fewer where a part is missing.
        """
        names = await self._run(self._list, self._folder(_UPLOADS, upload_id))
        reached = 0
        for part in cover(parse(names), size):
            try:
                content: bytes = await self._run(self._fs.cat_file, part.path)
            except NotFoundError:
                break  # removed meanwhile
            await self.append(target, content[reached - part.start : size - part.start])
            reached = min(size, part.start + len(content))
        return reached

    async def drop_parts(self, upload_id: uuid.UUID) -> None:
        """Removes the parts of an upload, and what was left half written beside them."""
        await self._run(self._remove_folder, self._folder(_UPLOADS, upload_id))

    async def put(self, name: str, content: bytes | Path) -> str:
        """Stores a whole file.

        Args:
            name: Its place below the root.
            content: Bytes, or a local file.

        Returns:
            Its URL, as `url` gives it.
        """
        size = await self._run(_size_of, content)
        await self._run(self._write, f"{self._root}/{name}", content, size_bytes=size)
        return self.url(name)

    def url(self, name: str) -> str:
        """What names the file that `put` stores under `name`."""
        return str(self._fs.unstrip_protocol(f"{self._root}/{name}"))

    async def files_of(self, key: uuid.UUID) -> list[str]:
        """URLs of the files below `originals/<key>` and `posters/<key>`, half written ones, too."""
        paths = [
            path
            for kind in (ORIGINALS, POSTERS)
            for path in await self._run(self._list, self._folder(kind, key))
        ]
        return [str(self._fs.unstrip_protocol(path)) for path in paths]

    async def remove(self, url: str) -> None:
        """Removes an original or a poster; files of others, and one that is gone, stay as they are."""
        path = self._own_path(url)
        if path is not None and path.startswith(
            tuple(f"{self._root}/{kind}/" for kind in (ORIGINALS, POSTERS))
        ):
            await self._run(self._remove, path)

    async def fetch(self, url: str, target: Path, *, max_bytes: int) -> None:
        """Copies an original into a local file; leaves none when it fails.

        Raises:
            NotFoundError: When there is none.
            BadMediaError: When it is larger than `max_bytes`.
            InvalidArgumentError: When a web server says that it is elsewhere.
        """
        own = self._own_path(url)
        executor = self._source_executor if own is None else self._executor
        copy = Copy(url, target, max_bytes, None if own is None else (self._fs, own))
        try:
            await self._run(copy.run, size_bytes=max_bytes, executor=executor)
        except BaseException:
            # The thread may go on for long: then it removes the file.
            copy.abandoned.set()
            await self.discard(target)
            raise

    def owns(self, url: str) -> bool:
        """Whether an original lies in this store, and not where somebody else keeps it."""
        return self._own_path(url) is not None

    async def discard(self, file: Path) -> None:
        """Removes a local file of the scratch folder, if there is one."""
        await asyncio.to_thread(file.unlink, missing_ok=True)

    async def check_source(self, url: str) -> str:
        """See `sources.check_source`."""
        own = [f"{name}/{kind}" for name in self._names for kind in (_UPLOADS, ORIGINALS, POSTERS)]
        return await self._run(check_source, url, self._sources, own, executor=self._source_executor)

    def _folder(self, kind: str, key: uuid.UUID) -> str:
        return f"{self._root}/{kind}/{key.hex}"

    def _own_path(self, url: str) -> str | None:
        """The path of a file of this store; None for any other."""
        prefix = f"{self._names[-1]}/"
        return f"{self._root}/{url.removeprefix(prefix)}" if url.startswith(prefix) else None

    def _list(self, folder: str) -> list[str]:
        # Other servers write here, too: what is remembered of it is worth nothing.
        self._fs.invalidate_cache(folder)
        try:
            return list(self._fs.ls(folder, detail=False))
        except FileNotFoundError:
            return []

    def _write(self, path: str, content: bytes | Path) -> None:
        try:
            if isinstance(self._fs, LocalFileSystem):
                _write_local(Path(path), content)
            elif isinstance(content, bytes):
                self._fs.pipe_file(path, content)
            else:
                self._fs.put_file(str(content), path)
        except FileNotFoundError as error:
            # The folder, or the bucket: nothing that the caller asked for.
            raise UnavailableError("there is no place for a file in the storage") from error

    def _remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)
        if isinstance(self._fs, LocalFileSystem):
            with contextlib.suppress(OSError):  # there is another file in it
                Path(path).parent.rmdir()

    def _remove_folder(self, folder: str) -> None:
        if self._list(folder):
            self._fs.rm(folder, recursive=True)

    async def _run(
        self,
        work: Callable[..., T],
        *arguments: Any,
        size_bytes: int = 0,
        executor: ThreadPoolExecutor | None = None,
    ) -> T:
        loop = asyncio.get_running_loop()
        deadline_s = self._deadline_s + size_bytes / _SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout(deadline_s):
                return await loop.run_in_executor(executor or self._executor, work, *arguments)
        except KeekError:
            raise
        except TimeoutError as error:
            raise UnavailableError(f"the storage took longer than {deadline_s:g} s") from error
        except _GONE as error:
            raise NotFoundError("a file is missing in the storage") from error
        except Exception as error:
            # Each storage has a library, and errors, of its own.
            logger.warning("the storage failed", exc_info=True)
            raise UnavailableError("the storage is not reachable") from error


@asynccontextmanager
async def open_media(settings: Settings) -> AsyncIterator[MediaStore]:
    """The store at `media_url`, and a scratch folder that is removed at the end.

    Raises:
        SetupError: When there is no such storage, or a library is missing for it or for `video_sources`.
    """
    executors = ThreadPoolExecutor(_THREADS, "media"), ThreadPoolExecutor(_SOURCE_THREADS, "sources")
    try:
        async with open_scratch(settings.scratch_dir or settings.data_dir / "tmp") as scratch:
            yield MediaStore(settings, *executors, scratch)
    finally:
        for executor in executors:
            executor.shutdown(wait=False, cancel_futures=True)


def _size_of(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _append(target: Path, content: bytes) -> None:
    with target.open("ab") as file:
        file.write(content)


def _write_local(path: Path, content: bytes | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(path, path.with_name(f".{uuid.uuid4().hex}")) as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            with content.open("rb") as source:
                shutil.copyfileobj(source, file, _CHUNK)
