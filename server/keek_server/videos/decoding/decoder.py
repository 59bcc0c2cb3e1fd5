"""Decodes hostile files for the server: each in a process of its own that can do nothing else.

Of a file, the server itself looks at the first bytes only, for what it plainly is. A child
process that waits, imported and warm, gets the open file over a socket, closes a sandbox behind
itself (`sandbox.py`), answers, and ends; what it answers is checked (`answers.py`). Whatever
happens to it, only the call that it worked for notices.
"""

import asyncio
import logging
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
from keek_server.videos.decoding.endings import FAILS, ended_early, took_too_long
from keek_server.videos.decoding.limiter import ConcurrencyLimiter
from keek_server.videos.decoding.pool import WorkerPool
from keek_server.videos.decoding.sniff import sniff_video
from keek_server.videos.decoding.source import open_content, open_file
from keek_server.videos.decoding.types import FrameShape, Job, Limits
from keek_server.videos.decoding.worker import ChildEndedError, Exit, Worker

__all__ = ["DecodedVideo", "Decoder", "open_decoder"]

logger = logging.getLogger(__name__)

MAX_FRAMES = 64
"""The most frames that one call may ask for."""
_EXIT_TIMEOUT_S = 5.0
"""In which a child that has hung up, or was killed, is gone."""

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
        self._videos = ConcurrencyLimiter(settings.decode_workers, settings.decode_queue)
        # A search is not to wait behind uploads.
        self._images = ConcurrencyLimiter(settings.decode_workers, settings.decode_queue)
        self._pool = WorkerPool(settings.decode_workers)
        self._warned = False

    def start(self) -> None:
        """Starts the children that are kept ready; does not wait for them."""
        self._pool.start()

    async def aclose(self) -> None:
        """Ends all children; calls that are under way fail as UNAVAILABLE."""
        await self._pool.aclose()

    @property
    def children(self) -> list[int]:
        """Process ids of all children, those included that are about to end."""
        return self._pool.children

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
            UnavailableError: No child could be started, it was killed from outside, or the machine is
                too busy for it.
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
        worker = await self._pool.hand_over(job, descriptor)
        try:
            async with asyncio.timeout(self._settings.decode_timeout_s):
                head, body = await worker.answer(max_body_bytes(job))
            self._warn(head.get("flaw"), worker.output())
            raise_if_refused(head, field)
            return read(head, body)
        except TimeoutError:
            worker.kill()
            ended, timeout_s = await self._exit(worker), self._settings.decode_timeout_s
            raise took_too_long(ended, job.limits, timeout_s, field) from None
        except ChildEndedError:
            ended = await self._exit(worker)
            self._warn(None, worker.output())
            if self._pool.closed:
                raise UnavailableError("the decoder is closed") from None
            raise ended_early(ended, job.limits, field) from None
        except (ValueError, KeyError, TypeError) as error:
            # No stack trace: the message may be the child's, and of any length.
            logger.error("a decoding process gave no proper answer: %.200r", error)  # noqa: TRY400
            self._warn(None, worker.output())
            raise BadMediaError(MediaProblem.CORRUPT, FAILS, field=field) from error
        finally:
            self._pool.end(worker)

    async def _exit(self, worker: Worker) -> Exit | None:
        """How a child ended; None when it has not, in time."""
        try:
            async with asyncio.timeout(_EXIT_TIMEOUT_S):
                return await worker.exited()
        except TimeoutError:
            return None

    def _warn(self, flaw: object, output: str) -> None:
        if output:
            logger.error("a decoding process came upon something unforeseen: %s", output)
        if flaw and not self._warned:
            self._warned = True
            text = "files are decoded with limits, but without a filter of system calls: %.200r"
            logger.warning(text, flaw)


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
