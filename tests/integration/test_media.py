"""Where files are kept: parts, foreign sources, storages that fail, and servers that die."""

import asyncio
import signal
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from receiving import CHUNK, CLIP, STORAGES, with_storage

from keek_server.errors import InvalidArgumentError, NotFoundError, UnavailableError
from keek_server.settings import Settings
from keek_server.videos import sources as sources_module
from keek_server.videos.media import MediaStore, open_media


@pytest.fixture(params=STORAGES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return with_storage(Settings(data_dir=tmp_path / "data"), request.param)


@pytest.fixture
async def media(stored: Settings) -> AsyncIterator[MediaStore]:
    async with open_media(stored) as opened:
        yield opened


async def test_a_shorter_part_never_takes_the_place_of_a_longer_one(
    media: MediaStore,
) -> None:
    upload_id = uuid.uuid4()
    await media.put_part(upload_id, 0, CLIP[: 5 * CHUNK])
    await media.put_part(upload_id, 0, CLIP[:CHUNK])
    await media.put_part(upload_id, 4 * CHUNK, CLIP[4 * CHUNK : 6 * CHUNK])
    await media.put_part(upload_id, 7 * CHUNK, CLIP[7 * CHUNK : 8 * CHUNK])
    target = media.scratch / "whole"
    assert await media.append_parts(upload_id, target, 8 * CHUNK) == 6 * CHUNK
    assert target.read_bytes() == CLIP[: 6 * CHUNK]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("/etc/passwd", "no prefix"),
        ("{allowed}/../secret.mp4", "no prefix"),
        ("{allowed}-not/clip.mp4", "no prefix"),
        ("{allowed}/link.mp4", "no prefix"),
        ("file://{allowed}/../secret.mp4", "no prefix"),
        ("https://example.org/clip.mp4", "no prefix"),
        ("zip://x.mp4::file://{allowed}/a.zip", "chain"),
        ("s3://videos/%2e%2e/secret", "relative"),
        ("s3://videos-not/clip.mp4", "no prefix"),
        ("https://cdn/videos/..%2fsecret/x.mp4", "separators"),
        ("https://cdn/videos/..%2Fsecret/x.mp4", "separators"),
        ("https://cdn/videos/..%5csecret/x.mp4", "separators"),
        ("https://cdn/videos/..%5Csecret/x.mp4", "separators"),
        ("https://cdn/videos/..\\secret/x.mp4", "separators"),
        ("https://cdn/videos/..%252fsecret/x.mp4", "separators"),
        ("https://cdn/videos/%252e%252e/secret/x.mp4", "relative"),
        ("https://cdn/videos/%2e./secret/x.mp4", "relative"),
        ("https://cdn/videos/%" + "25" * 20 + "2e", "too often"),
        ("https://cdn/videos/.\t./secret/x.mp4", "cannot be shown"),
        ("sftp://host/videos/a?/../../../secret", "relative"),
        ("{allowed}/\0.mp4", "cannot be shown"),
        ("{allowed}/circle", "no path"),
        ("s3://videos/own/originals/x.mp4", "own files"),
    ],
)
async def test_a_source_outside_the_allowed_prefixes_is_refused(
    tmp_path: Path, source: str, reason: str
) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (tmp_path / "secret.mp4").write_bytes(CLIP)
    (allowed / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (allowed / "circle").symlink_to(allowed / "circle")
    prefixes = (str(allowed), "s3://videos/", "https://cdn/videos", "sftp://host/videos")
    own = ["s3://videos/own/originals"]
    for taken in ("s3://videos/clip.mp4", "https://cdn/videos/100%25.mp4?by=a%2Fb"):
        assert sources_module.check_source(taken, prefixes, own) == taken
    plain = sources_module.check_source(f"{allowed}/clip.mp4", prefixes, own)
    assert plain == f"file://{allowed}/clip.mp4"
    with pytest.raises(InvalidArgumentError, match=reason):
        sources_module.check_source(source.replace("{allowed}", str(allowed)), prefixes, own)


async def test_a_file_of_the_store_is_no_source(media: MediaStore, stored: Settings) -> None:
    media._sources = (stored.media_url, media._names[-1])
    own = await media.put("originals/own.mp4", b"own")
    with pytest.raises(InvalidArgumentError, match="own files"):
        await media.check_source(own)


async def test_a_disk_that_hangs_does_not_hang_who_looks_for_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def hang(path: str) -> Path:
        go_on.wait(10)
        return Path(path)

    monkeypatch.setattr(sources_module, "_real_path", hang)
    async with open_media(Settings(data_dir=tmp_path, media_deadline_s=0.2)) as media:
        with pytest.raises(UnavailableError, match="longer than"):
            await media.check_source("/nfs/clip.mp4")
        go_on.set()


async def test_files_of_others_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "theirs.mp4").write_bytes(CLIP)
    async with open_media(Settings(data_dir=tmp_path / "data")) as media:
        await media.remove(f"file://{tmp_path}/theirs.mp4")
        own = await media.put("originals/own.mp4", b"own")
        await media.remove(own)
        await media.remove(own)
        with pytest.raises(NotFoundError):
            await media.fetch(own, media.scratch / "own", max_bytes=10)
    assert (tmp_path / "theirs.mp4").exists()


# -- storages that fail, and servers that die -------------------------------------------------------
class Storage(fsspec.AbstractFileSystem):  # type: ignore[misc]  # it has no types
    """Somebody else's storage, which fails in ways of its own."""

    cachable = False
    go_on = threading.Event()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        assert threading.current_thread() is not threading.main_thread()

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        if "hang" in path:
            Storage.go_on.wait(20)
            return fsspec.filesystem("memory").open("/theirs", "rb")
        raise KeyError("AccessDenied")


@pytest.fixture
def theirs() -> Iterator[None]:
    fsspec.register_implementation("theirs", Storage, clobber=True)
    fsspec.filesystem("memory").pipe_file("/theirs", CLIP)
    Storage.go_on.clear()
    yield
    Storage.go_on.set()


@pytest.mark.usefixtures("theirs")
async def test_a_source_that_hangs_stops_no_upload_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with open_media(Settings(data_dir=tmp_path, media_deadline_s=0.5)) as media:
        targets = [media.scratch / f"{i}" for i in range(12)]
        fetches = [
            asyncio.create_task(media.fetch("theirs://hang", target, max_bytes=len(CLIP)))
            for target in targets
        ]
        await asyncio.sleep(0.1)
        # The fetches have theirs; the store answers sooner than a source that hangs for twenty seconds.
        media._deadline_s = 10.0
        upload_id = uuid.uuid4()
        await media.put_part(upload_id, 0, b"part")
        assert await media.append_parts(upload_id, media.scratch / "part", 4) == 4
        results = await asyncio.gather(*fetches, return_exceptions=True)
        assert {type(result) for result in results} == {UnavailableError}
        Storage.go_on.set()
        media._source_executor.shutdown(wait=True)
        assert [path.name for path in media.scratch.iterdir()] == ["part"]


@pytest.mark.usefixtures("theirs")
@pytest.mark.parametrize("url", ["theirs://broken", "nosuch://a/b"])
async def test_whatever_a_storage_raises_is_told_as_unavailable(tmp_path: Path, url: str) -> None:
    async with open_media(Settings(data_dir=tmp_path)) as media:
        with pytest.raises(UnavailableError, match="not reachable"):
            await media.fetch(url, media.scratch / "x", max_bytes=10)


_SERVER = """
import asyncio, sys
from pathlib import Path
from keek_server.settings import Settings
from keek_server.videos.media import open_media

async def main():
    async with open_media(Settings(data_dir=Path(sys.argv[1]))) as media:
        (media.scratch / "half").write_bytes(b"1")
        print("up", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_scratch_folder_of_a_killed_server_goes_and_that_of_a_living_one_stays(
    tmp_path: Path,
) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVER, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    assert await server.stdout.readline() == b"up\n"
    (folder,) = (tmp_path / "tmp").iterdir()
    async with open_media(Settings(data_dir=tmp_path)) as media:
        assert (folder / "half").exists()
        server.send_signal(signal.SIGKILL)
        await server.wait()
        async with open_media(Settings(data_dir=tmp_path)) as other:
            assert set((tmp_path / "tmp").iterdir()) == {media.scratch, other.scratch}
    assert list((tmp_path / "tmp").iterdir()) == []
