"""Keeps one child process running: start, wait until it works, restart when it dies, stop.

A child has a session of its own, so the terminal's Ctrl-C reaches the parent alone; it dies
with its parent, however that dies (`launch.py`); and it carries a mark by which it and its
descendants are found again (`procfs.py`).
"""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from keek_server.embedded import procfs
from keek_server.embedded.logs import log_tail
from keek_server.embedded.service import Service
from keek_server.errors import SetupError

logger = logging.getLogger(__name__)

_LAUNCHER = Path(__file__).with_name("launch.py")
_POLL_S = 0.03
_HEALTH_INTERVAL_S = 1.0
_BACKOFF_S = (0.1, 5.0)
"""The first and the longest pause before a restart; it doubles in between."""
_STABLE_S = 30.0
"""A child that ran this long is restarted without a longer pause than the first."""
_PORT_TRIES = 5


class PortTakenError(SetupError):
    """Someone else listens on the child's port."""


ServiceT = TypeVar("ServiceT", bound=Service)


class SupervisedProcess(Generic[ServiceT]):
    """One child of this process and of the event loop that started it.

    The kernel ties a child's life to the thread that started it, which is the event
    loop's: a loop that ends without `stop` takes the child with it, too.
    """

    def __init__(
        self,
        service: ServiceT,
        *,
        mark: str,
        log_path: Path,
        ready_timeout_s: float,
        on_restart: Callable[[], object] = lambda: None,
    ) -> None:
        """Nothing is started yet.

        Args:
            service: What to run.
            mark: The stack's random mark.
            log_path: Where the child's output is appended.
            ready_timeout_s: How long the child may take to become ready.
            on_restart: Called whenever a new process has replaced a dead one.
        """
        self.service = service
        self._mark = f"{mark}-{service.name}"
        self._log_path = log_path
        self._ready_timeout_s = ready_timeout_s
        self._on_restart = on_restart
        self._process: subprocess.Popen[bytes] | None = None
        self._stop_signal = signal.SIGTERM
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The process that runs now, or that ran last while the next one is not started."""
        return self._child.pid

    async def start(self) -> None:
        """Starts the child, returns when it is ready, and restarts it from now on.

        Raises:
            SetupError: it exited, or was not ready in time; says what its log says.
        """
        for attempt in range(1, _PORT_TRIES + 1):
            try:
                await self._launch()
            except PortTakenError:
                if attempt == _PORT_TRIES:
                    raise
                self.service.choose_port()
            else:
                break
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {self.service.name}")

    async def stop(self) -> None:
        """Asks the child to stop, and kills it when it takes too long. Harmless when not started."""
        supervisor, self._supervisor = self._supervisor, None
        try:
            if supervisor is not None:
                supervisor.cancel()
                await asyncio.wait([supervisor])
            await self._terminate()
        finally:
            # Not a single await: this happens also when stopping is itself cancelled.
            self._sweep()
        if supervisor is not None and not supervisor.cancelled():
            supervisor.result()

    @property
    def _child(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.service.name} was not started")
        return self._process

    def _spawn(self) -> None:
        command = self.service.command()
        changes = {
            "set": {**command.set, procfs.MARK: self._mark},
            "prepend": command.prepend,
            "drop": command.drop,
            "user": command.user and [command.user.uid, command.user.gid],
        }
        self._stop_signal = command.stop_signal
        launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), json.dumps(changes)]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, *command.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def _launch(self) -> None:
        """One start: returns when the child is ready; leaves nothing behind when it never is."""
        log_start = self._log_path.stat().st_size if self._log_path.exists() else 0
        started = time.monotonic()
        try:
            self._spawn()
            async with asyncio.timeout(self._ready_timeout_s):
                await self._until_ready(log_start)
        except TimeoutError:
            await asyncio.to_thread(self._sweep)
            raise self._never_ready(f"was not ready within {self._ready_timeout_s:g} s", log_start) from None
        except SetupError:
            await asyncio.to_thread(self._sweep)
            raise
        except BaseException:
            self._sweep()
            raise
        logger.info("%s is ready after %.2f s", self.service.name, time.monotonic() - started)

    async def _until_ready(self, log_start: int) -> None:
        while not await self.service.ready(self.pid):
            if (code := self._child.poll()) is not None:
                raise self._never_ready(f"exited with code {code}", log_start)
            await asyncio.sleep(_POLL_S)

    def _never_ready(self, what: str, log_start: int) -> SetupError:
        tail = log_tail(self._log_path, log_start)
        message = f"{self.service.name} {what}. The end of {self._log_path}:\n{tail}"
        if "already in use" in tail.lower():
            return PortTakenError(message)
        return SetupError(message)

    async def _supervise(self) -> None:
        shortest_s, longest_s = _BACKOFF_S
        pause_s = shortest_s
        while True:
            started = time.monotonic()
            cause = await self._death()
            await self._tidy_up()
            if time.monotonic() - started > _STABLE_S:
                pause_s = shortest_s
            logger.error("%s %s; restarting it in %.1f s", self.service.name, cause, pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
            try:
                await self._launch()
                self._on_restart()
            except (SetupError, OSError) as error:
                logger.error("%s", error)  # noqa: TRY400 - the message is for people

    async def _tidy_up(self) -> None:
        """Sweeps, as often as it takes: a supervisor that ends of it would restart nothing any more."""
        while True:
            try:
                # It waits for the kernel, and a server may run on this event loop.
                await asyncio.to_thread(self._sweep)
            except (SetupError, OSError) as error:
                # Out of file descriptors, say.
                logger.error("cannot tidy up behind %s: %s", self.service.name, error)  # noqa: TRY400
                await asyncio.sleep(_HEALTH_INTERVAL_S)
            else:
                return

    async def _death(self) -> str:
        """Returns when the child has died or no longer works; says which."""
        while True:
            try:
                async with asyncio.timeout(_HEALTH_INTERVAL_S):
                    return f"exited with code {await self._exit()}"
            except TimeoutError:
                if not self.service.healthy(self.pid):
                    return "no longer works"
            except OSError as error:
                # Out of file descriptors, say: a supervisor that ends of it would restart nothing any more.
                logger.error("cannot watch %s: %s", self.service.name, error)  # noqa: TRY400
                await asyncio.sleep(_HEALTH_INTERVAL_S)

    async def _exit(self) -> int:
        """The child's exit code, once it has one."""
        child, loop = self._child, asyncio.get_running_loop()
        if child.returncode is not None:
            return child.returncode
        handle = os.pidfd_open(child.pid)
        exited = asyncio.Event()
        loop.add_reader(handle, exited.set)
        try:
            await exited.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
        return child.wait()

    async def _terminate(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(self._stop_signal)
        try:
            async with asyncio.timeout(self.service.stop_grace_s):
                await self._exit()
        except TimeoutError:
            logger.debug("%s was still busy stopping and is killed", self.service.name)

    def _sweep(self) -> None:
        """Makes sure that nothing of the child remains: processes, shared memory."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        procfs.kill_marked(self._mark)
        self.service.clean()
