"""The server's end of one child process: started, handed one file, read, ended."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

from keek_server.videos.decoding.types import Job
from keek_server.videos.decoding.wire import MAX_HEAD_BYTES, PREFIX, READY, encode_job

_MODULE = "keek_server.videos.decoding.child"
_ENVIRONMENT = {"LANG": "C.UTF-8"}
"""All that a child gets: the server's own may hold passwords."""
_KEPT_OUTPUT_BYTES = 4096


class ChildEndedError(Exception):
    """The child ended before it was through."""


class Exit(NamedTuple):
    """How a child ended."""

    code: int
    """Negative when a signal ended it."""
    cpu_s: float
    """Processor time over its whole life, in seconds."""


class Worker:
    """One child of this event loop's thread.

    The kernel ties a child's life to the thread that started it. Starting one takes about two
    milliseconds, and until it has imported everything, `ready` waits.
    """

    def __init__(self) -> None:
        """Starts the child.

        Raises:
            OSError: It cannot be started; nothing is left of it.
        """
        with ExitStack() as ours:
            self._channel, theirs = socket.socketpair()
            ours.callback(self._channel.close)
            with theirs:
                self._errors, errors = os.pipe()
                ours.callback(os.close, self._errors)
                self._process = _start(theirs, errors)
            ours.callback(self._discard)
            self._handle = os.pidfd_open(self._process.pid)
            self._channel.setblocking(False)
            os.set_blocking(self._errors, False)
            ours.pop_all()
        self._exit: Exit | None = None
        self._is_ready = False

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._process.pid

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
        try:
            head = json.loads(await self._read(head_bytes))
        except RecursionError:
            raise ValueError("an answer that is nested too deeply") from None
        if not isinstance(head, dict):
            raise ValueError("an answer that is no object")  # noqa: TRY004 - all that is wrong with it is one
        return head, await self._read(body_bytes)

    def output(self) -> str:
        """The end of what the child wrote for people, quoted: one line, all of it printable."""
        try:
            written = os.read(self._errors, 1 << 20)
        except BlockingIOError:
            written = b""
        text = written[-_KEPT_OUTPUT_BYTES:].decode(errors="replace").strip()
        return ascii(text) if text else ""

    def kill(self) -> None:
        """Harmless when it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    async def aclose(self) -> None:
        """Ends the child if it runs, and leaves nothing of it; not to be called twice."""
        self.kill()
        await self.exited()
        self._channel.close()
        os.close(self._errors)
        os.close(self._handle)

    async def exited(self) -> Exit:
        """Waits for the end of the child; not to be called by two at the same time."""
        while self._exit is None:
            await self._readable(self._handle)
            # Not by `Popen.wait`, which does not tell what the child used.
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)  # noqa: ASYNC222 - it does not wait
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._exit = Exit(code, usage.ru_utime + usage.ru_stime)
                self._process.returncode = code
        return self._exit

    async def _readable(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(descriptor, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(descriptor)

    def _discard(self) -> None:
        self._process.kill()
        self._process.wait()

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


def _start(channel: socket.socket, errors: int) -> "subprocess.Popen[bytes]":
    """Closes the child's end of the pipe for errors, whatever happens."""
    try:
        # A child that writes more than the pipe holds is not to wait for a reader.
        os.set_blocking(errors, False)
        return subprocess.Popen(
            _command(),
            stdin=channel.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
    finally:
        os.close(errors)


def _command() -> list[str]:
    return [sys.executable, "-I", "-m", _MODULE, str(os.getpid())]
