"""The server's end of one child process: started, handed one file, read, ended."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from typing import Any

from keek_server.videos.decoding.types import Job
from keek_server.videos.decoding.wire import MAX_HEAD_BYTES, PREFIX, READY, encode_job

_MODULE = "keek_server.videos.decoding.child"
_ENVIRONMENT = {"LANG": "C.UTF-8"}
"""All that a child gets: the server's own may hold passwords."""
_KEPT_OUTPUT_BYTES = 4096


class ChildEndedError(Exception):
    """The child ended before it was through."""


class Worker:
    """One child of this event loop's thread.

    The kernel ties a child's life to the thread that started it. Starting one takes about two
    milliseconds, and until it has imported everything, `ready` waits.
    """

    def __init__(self) -> None:
        """Starts the child."""
        ours, theirs = socket.socketpair()
        self._errors, errors = os.pipe()
        with theirs:
            # A child that writes more than the pipe holds is not to wait for a reader.
            os.set_blocking(errors, False)
            os.set_blocking(self._errors, False)
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                [sys.executable, "-I", "-m", _MODULE, str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
            os.close(errors)
        self._channel = ours
        self._channel.setblocking(False)
        self._handle = os.pidfd_open(self._process.pid)
        self._is_ready = False

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the child runs."""
        return self._process.poll() is None

    async def ready(self) -> None:
        """Returns when the child can take a file.

        Raises:
            ChildEndedError: It never will.
        """
        if not self._is_ready:
            self._is_ready = await self._read(len(READY)) == READY

    def send(self, job: Job, descriptor: int) -> None:
        """Hands over a job with its file, which may be closed here afterwards.

        Raises:
            ChildEndedError: The child has ended; nothing was read of the file.
        """
        try:
            socket.send_fds(self._channel, [encode_job(job)], [descriptor])
        except OSError as error:
            raise ChildEndedError from error

    async def answer(self, max_body_bytes: int) -> tuple[dict[str, Any], bytearray]:
        """Reads the answer, which is no more to be trusted than the file.

        Raises:
            ChildEndedError: There is none.
            ValueError: It is none.
        """
        head_bytes, body_bytes = PREFIX.unpack(await self._read(PREFIX.size))
        if head_bytes > MAX_HEAD_BYTES or body_bytes > max_body_bytes:
            raise ValueError(f"an answer of {head_bytes} and {body_bytes} bytes")
        head = json.loads(await self._read(head_bytes))
        if not isinstance(head, dict):
            raise ValueError("an answer that is no object")  # noqa: TRY004 - all that is wrong with it is one
        return head, await self._read(body_bytes)

    def output(self) -> str:
        """The end of what the child wrote for people."""
        try:
            written = os.read(self._errors, 1 << 20)
        except BlockingIOError:
            written = b""
        return written[-_KEPT_OUTPUT_BYTES:].decode(errors="replace").strip()

    def kill(self) -> None:
        """Harmless when it has ended."""
        self._process.kill()

    async def aclose(self) -> None:
        """Ends the child if it runs, and leaves nothing of it; not to be called twice."""
        self.kill()
        await self.exit_code()
        self._channel.close()
        os.close(self._errors)
        os.close(self._handle)

    async def exit_code(self) -> int:
        """Waits for the end of the child; negative when a signal ended it."""
        loop = asyncio.get_running_loop()
        if self._process.poll() is None:
            exited = asyncio.Event()
            loop.add_reader(self._handle, exited.set)
            try:
                await exited.wait()
            finally:
                loop.remove_reader(self._handle)
        return self._process.wait()

    async def _read(self, count: int) -> bytearray:
        loop = asyncio.get_running_loop()
        data = bytearray(count)
        rest = memoryview(data)
        while rest:
            try:
                received = await loop.sock_recv_into(self._channel, rest)
            except ConnectionError:
                received = 0
            if not received:
                raise ChildEndedError
            rest = rest[received:]
        return data
