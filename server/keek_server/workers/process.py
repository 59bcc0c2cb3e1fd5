"""One worker: a `keek-server serve` that says when it serves, and dies with the process that started it."""

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import keek_server

logger = logging.getLogger(__name__)

# By its path: the package around it loads a client of gRPC.
_LAUNCHER: Final = Path(keek_server.__file__).parent / "embedded" / "launch.py"
SETTLED: Final = b"1"
"""What a worker writes that serves all that should be served."""
UNSETTLED: Final = b"0"
"""What one writes that takes calls all the same."""


async def spawn(
    arguments: Sequence[str], variables: Mapping[str, str], drop: Sequence[str] = (), fds: Sequence[int] = ()
) -> asyncio.subprocess.Process:
    """Starts `keek-server` anew, never by a fork that goes on. The terminal's Ctrl-C does not reach it.

    Args:
        arguments: Of `keek-server`.
        variables: What its environment has on top of this process's.
        drop: Variables that it does not get.
        fds: Open files that it gets.
    """
    changes = {"set": dict(variables), "prepend": {}, "drop": list(drop), "user": None}
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), json.dumps(changes)]
    return await asyncio.create_subprocess_exec(
        *launcher,
        *(sys.executable, "-m", "keek_server", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=tuple(fds),
        start_new_session=True,
    )


async def stop(process: asyncio.subprocess.Process, grace_s: float | None) -> bool:
    """Asks a process to end, and kills it when it has not within `grace_s`. Harmless when it has ended.

    Returns:
        Whether it ended by itself.
    """
    try:
        with suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(grace_s):
            await process.wait()
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return True


class Worker:
    """From its start to its end."""

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, said: asyncio.StreamReader, ready_s: float
    ) -> None:
        self.number = number
        self.started = time.monotonic()
        self._process = process
        self.readiness = asyncio.create_task(self._listen(said, ready_s), name=f"readiness of {self}")
        """Whether it serves all that should be served, once it takes calls; None when it never does."""

    @classmethod
    async def start(
        cls, number: int, variables: Mapping[str, str], drop: Sequence[str], *, ready_s: float
    ) -> Self:
        """Starts one.

        Args:
            number: From 1; the worker that takes another's place has its number.
            variables: What its environment has on top of this process's.
            drop: Variables that it does not get.
            ready_s: It is killed when it takes no calls after so long.
        """
        theirs, ours = os.pipe()
        try:
            arguments = ["serve", "--worker", str(number), "--ready-fd", str(ours)]
            process = await spawn(arguments, variables, drop, [ours])
        except BaseException:
            os.close(theirs)
            raise
        finally:
            os.close(ours)
        said = asyncio.StreamReader()
        file = os.fdopen(theirs, "rb", buffering=0)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(said), file)
        return cls(number, process, said, ready_s)

    def __str__(self) -> str:
        return f"worker {self.number} ({self.pid})"

    @property
    def pid(self) -> int:
        """Its process, or what was it."""
        return self._process.pid

    @property
    def serves(self) -> bool:
        """Whether it takes calls."""
        return self._process.returncode is None and self.was_ready

    @property
    def was_ready(self) -> bool:
        """Whether it ever took calls."""
        done = self.readiness.done() and not self.readiness.cancelled()
        return done and self.readiness.result() is not None

    async def ended(self) -> str:
        """How it ended, once it has."""
        code = await self._process.wait()
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    async def stop(self, grace_s: float) -> None:
        """Lets it drain, for so long at most."""
        if not await stop(self._process, grace_s):
            logger.error("%s had not stopped after %g s, and was killed", self, grace_s)
        await asyncio.wait([self.readiness])

    async def _listen(self, said: asyncio.StreamReader, timeout_s: float) -> bool | None:
        try:
            async with asyncio.timeout(timeout_s):
                word = await said.read(1)
        except TimeoutError:
            logger.error("%s takes no calls after %g s, and is killed", self, timeout_s)  # noqa: TRY400
            await stop(self._process, 0.0)
            return None
        return word == SETTLED if word else None
