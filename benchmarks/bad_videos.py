"""Broken and hostile files among good ones: each is refused for the right reason, and nobody else notices.

The files are made by another process, so that the memory of this one, which does what the server
does, tells what they cost it. Meanwhile good clips are taken apart over and over; the result must be
the same as before.
"""

import argparse
import asyncio
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from benchmarks.clips import any_clip, write_clip
from benchmarks.hostile_files import HostileFile, hostile_files
from benchmarks.servers import report
from keek_server.errors import BadMediaError, KeekError
from keek_server.settings import Settings
from keek_server.videos.decoding.decoder import Decoder, open_decoder
from keek_server.videos.decoding.types import FrameShape

_SHAPE = FrameShape(224)
_FRAMES = 8
_GOOD_CLIPS = 4
_OTHERS = 2
_PAUSE_S = 0.1


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
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether all is as it should be."""
        return not (self.wrong or self.other_uploads_failed or self.children_left)

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
            "wrong": self.wrong,
            "seconds": round(self.seconds, 1),
        }


class Sender:
    """How a file reaches what is tested: the one place that knows."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    async def upload(self, path: Path) -> bytes:
        """Something that tells one result from another.

        Raises:
            BadMediaError: The file was refused.
        """
        video = await self._decoder.decode_video(path, _SHAPE, _FRAMES)
        return video.frames.tobytes() + video.poster_jpeg


@asynccontextmanager
async def _open_sender(folder: Path) -> AsyncIterator[Sender]:
    async with open_decoder(Settings(data_dir=folder)) as decoder:
        yield Sender(decoder)


async def _run(files: list[HostileFile]) -> Outcome:
    outcome = Outcome()
    with tempfile.TemporaryDirectory(prefix="keek-bad-videos-") as name:
        folder = Path(name)
        await asyncio.to_thread(_make, folder, [file.name for file in files])
        started = time.monotonic()
        async with _open_sender(folder) as sender:
            await _send(sender, folder, files, outcome)
        outcome.seconds = time.monotonic() - started
    outcome.children_left = _children()
    return outcome


async def _send(sender: Sender, folder: Path, files: list[HostileFile], outcome: Outcome) -> None:
    good = {path: await sender.upload(path) for path in sorted((folder / "good").iterdir())}
    before = _rss_bytes()
    others = [asyncio.create_task(_send_good(sender, good, i, outcome)) for i in range(_OTHERS)]
    for file in tqdm(files, file=sys.stderr):
        await _send_bad(sender, folder / file.name, file, outcome)
    for task in others:
        task.cancel()
    await asyncio.wait(others)
    outcome.parent_rss_growth = _rss_bytes() - before


async def _send_bad(sender: Sender, path: Path, file: HostileFile, outcome: Outcome) -> None:
    outcome.tried += 1
    try:
        await sender.upload(path)
    except BadMediaError as error:
        outcome.refused += 1
        if error.reason not in file.reasons:
            outcome.wrong[file.name] = f"{error.reason}: {error}"
    except KeekError as error:
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
        except KeekError:
            same = False
        outcome.other_uploads += 1
        outcome.other_uploads_failed += not same
        outcome.other_uploads_slowest_s = max(outcome.other_uploads_slowest_s, time.monotonic() - started)
        await asyncio.sleep(_PAUSE_S)


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


def _rss_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _children() -> int:
    """Decoding processes that this one has left behind."""
    count = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text("ascii", "replace").rpartition(")")[2].split()[1])
            command = status.with_name("cmdline").read_bytes()
        except (OSError, ValueError):
            continue  # it has just ended
        count += parent == os.getpid() and (b"decoding.child" in command or not command)
    return count


if __name__ == "__main__":
    main()
