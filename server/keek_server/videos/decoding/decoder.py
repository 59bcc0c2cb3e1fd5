"""Decodes hostile files for the server: each in a process of its own that can do nothing else.

Of a file, the server itself looks at the first bytes only, for what it plainly is. A child
process that waits, imported and warm, gets the open file over a socket, closes a sandbox behind
itself (`sandbox.py`), answers, and ends; what it answers is checked (`answers.py`). Whatever
happens to it, only the call that it worked for notices.
"""

import asyncio
import logging
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from keek_server.errors import BadMediaError, MediaProblem, UnavailableError
from keek_server.settings import Settings
from keek_server.videos.decoding.answers import (
    DecodedVideo,
    image_of,
    max_body_bytes,
    raise_if_refused,
    video_of,
)
from keek_server.videos.decoding.lane import Lane
from keek_server.videos.decoding.sniff import sniff_video
from keek_server.videos.decoding.source import open_content, open_file
from keek_server.videos.decoding.types import FrameShape, Job, Limits
from keek_server.videos.decoding.worker import ChildEndedError, Worker

__all__ = ["DecodedVideo", "Decoder", "open_decoder"]

logger = logging.getLogger(__name__)

MAX_FRAMES = 64
"""The most frames that one call may ask for."""
_START_TRIES = 3
_START_TIMEOUT_S = 30.0

_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
"""Signals that no file brings about."""
_FAILS = "the decoder fails on it"

_Result = TypeVar("_Result")


@asynccontextmanager
async def open_decoder(settings: Settings) -> AsyncIterator["Decoder"]:
    """A decoder for this event loop; every child has ended when the block is left."""
    decoder = Decoder(settings)
    decoder.start()
    try:
        yield decoder
    finally:
        await decoder.aclose()


class Decoder:
    """Made by `open_decoder`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limits = _limits(settings)
        self._videos = Lane(settings.decode_workers, settings.decode_queue)
        # A search is not to wait behind uploads.
        self._images = Lane(settings.decode_workers, settings.decode_queue)
        self._spares: deque[Worker] = deque()
        self._busy: set[Worker] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False
        self._none_left = asyncio.Event()
        self._warned = False

    def start(self) -> None:
        """Starts the children that are kept ready; does not wait for them."""
        while not self._closed and len(self._spares) < self._settings.decode_workers:
            self._spares.append(Worker())

    async def aclose(self) -> None:
        """Ends all children; calls that are under way fail as UNAVAILABLE."""
        self._closed = True
        for worker in self._busy:
            worker.kill()
        while self._spares:
            self._end(self._spares.popleft())
        if self._busy or self._ending:
            await self._none_left.wait()

    @property
    def children(self) -> list[int]:
        """Process ids of all children, those included that are about to end."""
        return [worker.pid for worker in (*self._spares, *self._busy)]

    async def decode_video(
        self, path: Path, shape: FrameShape | None, count: int, *, field: str = "content"
    ) -> DecodedVideo:
        """Checks a video's file and takes frames and a poster from it.

        Args:
            path: A regular file on this machine.
            shape: Of the frames; without it only the poster is made.
            count: The most frames that are wanted, at most `MAX_FRAMES`.
            field: What of the request the file is, for the error.

        Raises:
            BadMediaError: It is no video that can be used; says why.
            OverloadedError: Too many files wait already.
            UnavailableError: No child could be started, or it was killed from outside.
            OSError: The file cannot be opened.
        """
        if not 0 <= count <= MAX_FRAMES:
            raise ValueError(f"{count} frames; at most {MAX_FRAMES} are made")
        async with open_file(path) as source:
            self._check_bytes(source.size_bytes, self._settings.video_max_bytes, field)
            # No child is needed for what is plainly something else.
            sniff_video(source.head, field)
            job = Job("video", source.size_bytes, shape, count, self._limits)
            async with self._videos.turn():
                return await self._decode(
                    job, source.descriptor, field, lambda head, body: video_of(head, body, job)
                )

    async def decode_image(
        self, content: bytes, shape: FrameShape, *, field: str = "content"
    ) -> npt.NDArray[np.uint8]:
        """Decodes a JPEG, PNG or WebP; the first picture of an animation.

        Args:
            content: The file.
            shape: Of the result.
            field: What of the request it is, for the error.

        Returns:
            uint8 [3, size, size], RGB.

        Raises:
            BadMediaError, OverloadedError, UnavailableError: As `decode_video`.
        """
        self._check_bytes(len(content), self._settings.image_max_bytes, field)
        async with self._images.turn(), open_content(content) as source:
            job = Job("image", source.size_bytes, shape, 1, self._limits)
            return await self._decode(job, source.descriptor, field, lambda _, body: image_of(body, shape))

    def _check_bytes(self, size_bytes: int, most: int, field: str) -> None:
        if size_bytes > most:
            text = f"{size_bytes:,} bytes are more than the {most:,} allowed"
            raise BadMediaError(MediaProblem.TOO_LARGE, text, field=field)

    async def _decode(
        self, job: Job, descriptor: int, field: str, read: Callable[[dict[str, Any], bytearray], _Result]
    ) -> _Result:
        worker = await self._hand_over(job, descriptor)
        try:
            async with asyncio.timeout(self._settings.decode_timeout_s):
                head, body = await worker.answer(max_body_bytes(job))
            self._warn(head.get("flaw"), worker.output())
            raise_if_refused(head, field)
            return read(head, body)
        except TimeoutError:
            text = f"decoding it takes more than {self._settings.decode_timeout_s:g} s"
            raise BadMediaError(MediaProblem.DECODE_BOMB, text, field=field) from None
        except ChildEndedError:
            raise await self._cause(worker, job, field) from None
        except (ValueError, KeyError, TypeError) as error:
            logger.exception("a decoding process gave no proper answer: %s", worker.output())
            raise BadMediaError(MediaProblem.CORRUPT, _FAILS, field=field) from error
        finally:
            self._end(worker)

    async def _hand_over(self, job: Job, descriptor: int) -> Worker:
        """A child that has the job; in the place of spare ones that have died, another."""
        for _ in range(_START_TRIES):
            worker = self._take()
            try:
                async with asyncio.timeout(_START_TIMEOUT_S):
                    await worker.ready()
                worker.send(job, descriptor)
            except (ChildEndedError, TimeoutError):
                logger.warning("a decoding process did not start, or has died: %s", worker.output())
                self._end(worker)
            except BaseException:
                self._end(worker)
                raise
            else:
                return worker
        raise UnavailableError("no decoding process could be started")

    def _take(self) -> Worker:
        if self._closed:
            raise UnavailableError("the decoder is closed")
        try:
            worker = self._spares.popleft() if self._spares else Worker()
        except OSError as error:
            raise UnavailableError(f"no decoding process could be started: {error}") from error
        self._busy.add(worker)
        # The next one starts while this one works.
        self.start()
        return worker

    def _end(self, worker: Worker) -> None:
        """At once; what remains to be done needs no one to wait for it."""
        worker.kill()
        self._busy.discard(worker)
        task = asyncio.create_task(worker.aclose())
        self._ending.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if self._closed and not self._busy and not self._ending:
            self._none_left.set()

    async def _cause(self, worker: Worker, job: Job, field: str) -> BadMediaError | UnavailableError:
        """Why a child ended before it had answered."""
        code = await worker.exit_code()
        if self._closed:
            return UnavailableError("the decoder is closed")
        if code == -signal.SIGXCPU:
            text = f"decoding it takes more than {job.limits.cpu_s} s of processor time"
            return BadMediaError(MediaProblem.DECODE_BOMB, text, field=field)
        if -code in _FROM_OUTSIDE:
            return UnavailableError(f"the decoding process was ended by signal {-code}")
        logger.error("a decoding process ended with code %d: %s", code, worker.output())
        return BadMediaError(MediaProblem.CORRUPT, _FAILS, field=field)

    def _warn(self, flaw: object, output: str) -> None:
        if output:
            logger.error("a decoding process came upon something unforeseen: %s", output)
        if flaw and not self._warned:
            self._warned = True
            logger.warning("files are decoded with limits, but without a filter of system calls: %s", flaw)


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_duration_s=settings.video_max_duration_s,
        max_side_pixels=settings.video_max_side_pixels,
        max_frame_rate=settings.video_max_frame_rate,
        max_frames=settings.video_max_frames,
        verify_pixels=settings.video_verify_pixels,
        codecs=tuple(sorted(settings.video_codecs)),
        cpu_s=settings.decode_cpu_s,
        memory_mb=settings.decode_memory_mb,
    )
