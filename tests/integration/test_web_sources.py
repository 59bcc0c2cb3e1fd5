"""Videos that CreateVideo takes from a real web server, which is none of the best."""

import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from keek_server.errors import BadMediaError, InvalidArgumentError, MediaProblem, NotFoundError, SetupError
from keek_server.settings import Settings
from keek_server.videos.media import MediaStore, open_media

CONTENT = bytes(range(256)) * 4096 * 9
"""Nine mebibytes: more than fsspec asks for at a time where a server gives parts."""


class Pages(BaseHTTPRequestHandler):
    """Knows nothing of parts."""

    def do_GET(self) -> None:
        if self.path == "/videos/moved.mp4":
            self.send_response(302)
            self.send_header("Location", "/secret.mp4")
            self.end_headers()
            return
        if self.path not in ("/videos/clip.mp4", "/secret.mp4"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        with suppress(ConnectionError):  # of who has seen enough
            self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    """The prefix that is allowed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/videos"
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Taken:
    """Takes what lies under the prefix."""

    media: MediaStore
    site: str

    async def fetch(self, name: str, *, max_bytes: int = len(CONTENT)) -> bytes:
        target = self.media.scratch / "file"
        source = await self.media.check_source(f"{self.site}/{name}")
        await self.media.fetch(source, target, max_bytes=max_bytes)
        return target.read_bytes()


@pytest.fixture
async def taken(site: str, tmp_path: Path) -> AsyncIterator[Taken]:
    pytest.importorskip("aiohttp", reason="needs the extra keek[http]")
    async with open_media(Settings(data_dir=tmp_path, video_sources=(site,))) as media:
        yield Taken(media, site)
        assert [path.name for path in media.scratch.iterdir()] in ([], ["file"])


async def test_a_video_is_taken_from_a_web_server_that_gives_no_parts(taken: Taken) -> None:
    assert await taken.fetch("clip.mp4") == CONTENT


async def test_a_redirect_out_of_what_is_allowed_is_refused(taken: Taken) -> None:
    with pytest.raises(InvalidArgumentError, match="is redirected"):
        await taken.fetch("moved.mp4")
    assert list(taken.media.scratch.iterdir()) == []


async def test_what_is_not_there_or_too_large_is_told(taken: Taken) -> None:
    with pytest.raises(NotFoundError):
        await taken.fetch("nothing.mp4")
    with pytest.raises(BadMediaError) as refused:
        await taken.fetch("clip.mp4", max_bytes=len(CONTENT) - 1)
    assert refused.value.reason is MediaProblem.TOO_LARGE
    assert list(taken.media.scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("prefix", "words"), [("lacking://videos", "needs a library"), ("nosuch://videos", "Protocol not known")]
)
async def test_a_prefix_that_cannot_be_read_is_told_when_the_server_starts(
    tmp_path: Path, prefix: str, words: str
) -> None:
    fsspec.register_implementation(
        "lacking", "keek_no_such_library.FileSystem", errtxt="needs a library", clobber=True
    )
    with pytest.raises(SetupError, match=rf"videos from {prefix}: {words}.* \(KEEK_VIDEO_SOURCES\)"):
        async with open_media(Settings(data_dir=tmp_path, video_sources=("/videos", prefix))):
            pass
