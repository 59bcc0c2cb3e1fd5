"""Broken and hostile files among good ones: each is refused for the right reason, and nobody else notices.

All are uploaded to a real server, whose memory tells what they cost it. Meanwhile good clips are uploaded
over and over; what the server makes of them must be the same as before.
"""

import argparse
import asyncio
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

import keek
import keek.aio
from benchmarks.arena import open_arena
from benchmarks.clips import any_clip, write_clip
from benchmarks.hostile_files import HostileFile, hostile_files
from benchmarks.server_process import ServerProcess
from benchmarks.servers import report
from keek_server.embedded import procfs

_GOOD_CLIPS = 4
_OTHERS = 2
_PAUSE_S = 0.1
_GONE_S = 2.0
"""In which children end that nothing needs any more, or whose server was killed."""
_MAX_RSS_GROWTH = 64 * 2**20
_CHILD = b"keek_server.videos.decoding.child"


def main() -> None:
    """Prints one JSON object, also to benchmarks/results/; exits with 1 when anything went wrong."""
    parser = argparse.ArgumentParser(description="Broken and hostile files")
    parser.add_argument("--only", default="", help="files whose names contain this (default: all)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)  # that hostile files are refused is no news
    outcome = asyncio.run(_run([file for file in hostile_files() if arguments.only in file.name]))
    report("bad-videos", outcome.as_dict())
    sys.exit(not outcome.passed)


@dataclass
class Outcome:
    """What came of the files."""

    tried: int = 0
    refused: int = 0
    wrong: dict[str, str] = field(default_factory=dict)
    """By name: what was said of a file that was not refused, or for another reason."""
    parent_rss_growth: int = 0
    """Bytes."""
    other_uploads: int = 0
    other_uploads_failed: int = 0
    other_uploads_slowest_s: float = 0.0
    children_left: int = 0
    """Beyond those that are kept ready while the server runs, and all when it has ended."""
    server_restarts: int = 0
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether all is as it should be."""
        went_wrong = self.wrong or self.other_uploads_failed or self.children_left or self.server_restarts
        tried = self.tried > 0 and self.other_uploads > 0
        return tried and not went_wrong and self.parent_rss_growth <= _MAX_RSS_GROWTH

    def as_dict(self) -> dict[str, object]:
        """For the report."""
        return {
            "tried": self.tried,
            "refused": self.refused,
            "right_reason": self.tried - len(self.wrong),
            "parent_rss_growth": self.parent_rss_growth,
            "other_uploads": self.other_uploads,
            "other_uploads_failed": self.other_uploads_failed,
            "other_uploads_slowest_s": round(self.other_uploads_slowest_s, 2),
            "children_left": self.children_left,
            "server_restarts": self.server_restarts,
            "wrong": self.wrong,
            "seconds": round(self.seconds, 1),
        }


class Sender:
    """Uploads files to the server under test."""

    def __init__(self, client: keek.aio.Client) -> None:
        self._client = client

    async def upload(self, path: Path) -> bytes:
        """What the server made of a file: its measures, and its poster.

        Raises:
            keek.InvalidArgumentError: It was refused.
        """
        video = await self._client.upload_video(path)
        poster = Path(video.poster_url.removeprefix("file://"))
        measures = f"{video.duration_s} {video.width} {video.height} "
        return measures.encode() + await asyncio.to_thread(poster.read_bytes)


async def _run(files: list[HostileFile]) -> Outcome:
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="keek-bad-videos-") as name:
        folder = Path(name)
        await asyncio.to_thread(_make, folder, [file.name for file in files])
        async with open_arena("sqlite", server_count=1) as arena:
            (server,) = arena.servers
            started, pid = time.monotonic(), server.pid
            await _send(server, folder, files, outcome)
            outcome.seconds = time.monotonic() - started
            outcome.server_restarts = int(server.pid != pid)
            await asyncio.sleep(_GONE_S)
            spares = arena.settings.decode_workers
            outcome.children_left = max(0, len(decoding_children(pid)) - spares)
        await asyncio.sleep(_GONE_S)
        outcome.children_left += len(decoding_children(pid))
    return outcome


async def _send(server: ServerProcess, folder: Path, files: list[HostileFile], outcome: Outcome) -> None:
    async with (
        keek.aio.Client(server.address) as client,
        # Without retries: an upload that fails because of another one has failed.
        keek.aio.Client(server.address, retry=None) as strict,
    ):
        sender = Sender(strict)
        good = {path: await sender.upload(path) for path in sorted((folder / "good").iterdir())}
        before = _rss_bytes(server.pid)
        others = [asyncio.create_task(_send_good(sender, good, i, outcome)) for i in range(_OTHERS)]
        for file in tqdm(files, file=sys.stderr):
            await _send_bad(Sender(client), folder / file.name, file, outcome)
        await cancel_all(others)
        outcome.parent_rss_growth = _rss_bytes(server.pid) - before


async def _send_bad(sender: Sender, path: Path, file: HostileFile, outcome: Outcome) -> None:
    outcome.tried += 1
    try:
        await sender.upload(path)
    except keek.InvalidArgumentError as error:
        outcome.refused += 1
        if error.reason not in file.reasons:
            outcome.wrong[file.name] = f"{error.reason}: {error}"
    except keek.KeekError as error:
        outcome.wrong[file.name] = repr(error)
    else:
        outcome.wrong[file.name] = "accepted"


async def _send_good(sender: Sender, good: dict[Path, bytes], first: int, outcome: Outcome) -> None:
    """Until cancelled; a result other than before is a failure, too."""
    paths = [*good]
    for number in range(first, sys.maxsize):
        path = paths[number % len(paths)]
        started = time.monotonic()
        try:
            same = await sender.upload(path) == good[path]
        except keek.KeekError:
            same = False
        outcome.other_uploads += 1
        outcome.other_uploads_failed += not same
        outcome.other_uploads_slowest_s = max(outcome.other_uploads_slowest_s, time.monotonic() - started)
        await asyncio.sleep(_PAUSE_S)


async def cancel_all(tasks: list[asyncio.Task[None]]) -> None:
    """Ends tasks that would never end.

    Raises:
        BaseExceptionGroup: What some of them ended with before.
    """
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    errors = [end for end in ends if end is not None and not isinstance(end, asyncio.CancelledError)]
    if errors:
        raise BaseExceptionGroup("uploads of good files ended", errors)


def decoding_children(server: int) -> list[int]:
    """Living decoding processes that a server has started, whoever their parent is by now."""
    pids = (int(entry.name) for entry in procfs.PROC.iterdir() if entry.name.isdigit())
    return [pid for pid in pids if _is_decoding_for(pid, str(server).encode())]


def _is_decoding_for(pid: int, server: bytes) -> bool:
    """A dead process that waits to be noticed has no command line."""
    with suppress(FileNotFoundError, ProcessLookupError):
        arguments = (procfs.PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
        return _CHILD in arguments and server in arguments
    return False


def _make(folder: Path, names: list[str]) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(_write_all, folder, names).result()


def _write_all(folder: Path, names: list[str]) -> None:
    for file in hostile_files():
        if file.name in names:
            file.write(folder)
    good = folder / "good"
    good.mkdir()
    for seed in range(_GOOD_CLIPS):
        write_clip(any_clip(seed), good, f"good-{seed}")


def _rss_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
