"""Starts workers, replaces those that end, restarts them one after the other, and stops them."""

import asyncio
import logging
import signal
import time
from collections.abc import Coroutine
from contextlib import ExitStack
from typing import Any, Final

from keek_server.errors import SetupError
from keek_server.metrics_endpoint import WORKERS_FOLDER
from keek_server.port import reserved_port, with_port
from keek_server.settings import Settings
from keek_server.workers.metrics import WorkerMetrics, worker_metrics
from keek_server.workers.process import Worker

logger = logging.getLogger(__name__)

_BACKOFF_S: Final = (0.1, 10.0)
"""The first and the longest pause before a restart; it doubles in between."""
_STABLE_S: Final = 30.0
"""A worker that ran this long is restarted without a longer pause than the first."""
_TRIES: Final = 5
"""Starts in a row that fail before it is given up, where no other worker serves."""
_STARTING: Final = 5
"""Waits of `startup_timeout_s` that a start may have, one after the other."""
_CLOSING_S: Final = 15.0
"""What a worker may take to close everything, after its last call has ended."""


class Supervisor:
    """The parent of the workers. It serves nothing itself."""

    def __init__(self, settings: Settings, count: int) -> None:
        """Nothing is started yet.

        Args:
            settings: As read from the environment, which the workers inherit.
            count: How many workers.
        """
        self._settings = settings
        self._numbers = range(1, count + 1)
        self._workers: dict[int, Worker] = {}
        self._alive: set[Worker] = set()
        """Those of a rolling restart as well, of which two have one number for a moment."""
        self._turns = {number: asyncio.Lock() for number in self._numbers}
        """Held by whoever replaces the worker of that number."""
        self._failures = dict.fromkeys(self._numbers, 0)
        self._restarts = 0
        self._hangup = asyncio.Event()
        self._variables: dict[str, str] = {}
        self._metrics: WorkerMetrics | None = None
        self._grace_s = settings.drain_delay_s + settings.drain_s + _CLOSING_S

    async def run(self) -> None:
        """Serves until cancelled; then all workers drain, and none is left.

        Raises:
            SetupError: When a worker does not start, or none does any more.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        with ExitStack() as stack:
            stack.callback(loop.remove_signal_handler, signal.SIGHUP)
            address = self._reserve(stack, self._settings.listen, "KEEK_LISTEN")
            if self._settings.interactions_listen:
                self._reserve(stack, self._settings.interactions_listen, "KEEK_INTERACTIONS_LISTEN")
            if self._settings.metrics_listen:
                metrics = worker_metrics(
                    self._settings.metrics_listen, self._count_serving, lambda: self._restarts
                )
                self._metrics = stack.enter_context(metrics)
                self._variables[WORKERS_FOLDER] = str(self._metrics.folder)
            try:
                await self._start_all()
                logger.info("listening on %s with %d workers", address, len(self._numbers))
                await _first_to_end(
                    *(self._keep(number) for number in self._numbers), self._roll_when_asked()
                )
            finally:
                await asyncio.gather(*map(self._stop, list(self._alive)))

    def _reserve(self, stack: ExitStack, listen: str, setting: str) -> str:
        """Takes a port for the workers, and tells them which."""
        port = stack.enter_context(reserved_port(listen, setting=setting))
        self._variables[setting] = address = with_port(listen, port)
        return address

    def _count_serving(self) -> int:
        return sum(worker.serves for worker in list(self._workers.values()))

    async def _start(self, number: int) -> Worker:
        settings = self._settings
        ready_s = settings.worker_ready_s + _STARTING * settings.startup_timeout_s
        worker = await Worker.start(number, self._variables, ["KEEK_METRICS_LISTEN"], ready_s=ready_s)
        self._alive.add(worker)
        return worker

    async def _stop(self, worker: Worker) -> None:
        await worker.stop(self._grace_s)
        self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        self._alive.discard(worker)
        if self._metrics is not None:
            self._metrics.forget(worker.pid)

    async def _start_all(self) -> None:
        """What is wrong at the first start will not mend itself."""
        for number in self._numbers:
            self._workers[number] = await self._start(number)
        starting = {worker.readiness: worker for worker in self._workers.values()}
        while starting:
            done, _ = await asyncio.wait(starting, return_when=asyncio.FIRST_COMPLETED)
            for readiness in done:
                worker = starting.pop(readiness)
                if readiness.result() is None:
                    raise SetupError(f"worker {worker.number} does not start; its reason is above")

    async def _keep(self, number: int) -> None:
        """Starts the worker of that number again whenever it has ended."""
        shortest_s, longest_s = _BACKOFF_S
        pause_s = shortest_s
        while True:
            worker = self._workers[number]
            how = await worker.ended()
            async with self._turns[number]:
                if self._workers[number] is not worker:
                    continue  # replaced in a rolling restart
                await asyncio.wait([worker.readiness])
                self._forget(worker)
                self._judge(number, how, was_ready=worker.was_ready)
                if time.monotonic() - worker.started > _STABLE_S:
                    pause_s = shortest_s
                while self._workers[number] is worker:
                    logger.error("%s %s; another one is started in %.1f s", worker, how, pause_s)
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, longest_s)
                    try:
                        self._workers[number] = await self._start(number)
                    except OSError as error:
                        how = f"cannot be replaced: {error}"
                        self._judge(number, how, was_ready=False)
                self._restarts += 1

    def _judge(self, number: int, how: str, *, was_ready: bool) -> None:
        """Gives up where nothing serves, and nothing will."""
        self._failures[number] = 0 if was_ready else self._failures[number] + 1
        if self._failures[number] >= _TRIES and not self._count_serving():
            raise SetupError(
                f"worker {number} {how} {_TRIES} times before it served, and no other serves;"
                " its reason is above"
            )

    async def _roll_when_asked(self) -> None:
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            logger.info("restarting the workers one after the other")
            for number in self._numbers:
                if not await self._replace(number):
                    break
            else:
                logger.info("all workers are new")

    async def _replace(self, number: int) -> bool:
        """Stops a worker as soon as a new one serves in its place; keeps it when that does not."""
        async with self._turns[number]:
            old = self._workers[number]
            try:
                new = await self._start(number)
            except OSError as error:
                logger.error("%s cannot be replaced, and goes on: %s", old, error)  # noqa: TRY400
                return False
            settled = await new.readiness
            if settled is None or (old.serves and old.readiness.result() and not settled):
                logger.error("%s does not serve as %s does, which goes on in its place", new, old)
                await self._stop(new)
                return False
            self._workers[number] = new
            await self._stop(old)
            return True


async def _first_to_end(*jobs: Coroutine[Any, Any, None]) -> None:
    """Runs jobs that have no end side by side; what ends one of them, ends all, and is raised."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
