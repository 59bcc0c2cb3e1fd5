"""The child processes of one decoder: some kept ready, each for one file, and every one ended."""

import asyncio
import logging
from collections import deque

from keek_server.errors import UnavailableError
from keek_server.videos.decoding.types import Job
from keek_server.videos.decoding.worker import ChildEndedError, Worker

logger = logging.getLogger(__name__)

_START_TRIES = 3
_START_TIMEOUT_S = 30.0


class WorkerPool:
    """Children of this event loop's thread."""

    def __init__(self, spare_count: int) -> None:
        """
        Args:
            spare_count: Children that are kept ready.
        """
        self._spare_count = spare_count
        self._spares: deque[Worker] = deque()
        self._busy: set[Worker] = set()
        self._ending: set[asyncio.Task[None]] = set()
        self._none_left = asyncio.Event()
        self.closed = False

    @property
    def children(self) -> list[int]:
        """Process ids of all children, those included that are about to end."""
        return [worker.pid for worker in (*self._spares, *self._busy)]

    def start(self) -> None:
        """Starts the children that are kept ready, as far as that can be done; does not wait for them."""
        while not self.closed and len(self._spares) < self._spare_count:
            try:
                self._spares.append(Worker())
            except OSError as error:
                # Whoever needs one will try again.
                logger.warning("no decoding process can be kept ready: %s", error)
                return

    async def hand_over(self, job: Job, descriptor: int) -> Worker:
        """A child that has the job; in the place of spare ones that have died, another.

        Raises:
            UnavailableError: None can be started.
        """
        for _ in range(_START_TRIES):
            worker = self._take()
            try:
                async with asyncio.timeout(_START_TIMEOUT_S):
                    await worker.ready()
                worker.send(job, descriptor)
            except (ChildEndedError, TimeoutError):
                logger.warning("a decoding process did not start, or has died: %s", worker.output())
                self.end(worker)
            except BaseException:
                self.end(worker)
                raise
            else:
                return worker
        raise UnavailableError("no decoding process could be started")

    def end(self, worker: Worker) -> None:
        """At once; what remains to be done needs no one to wait for it."""
        worker.kill()
        self._busy.discard(worker)
        task = asyncio.create_task(worker.aclose())
        self._ending.add(task)
        task.add_done_callback(self._ended)

    async def aclose(self) -> None:
        """Ends all children; calls that are under way find theirs ended."""
        self.closed = True
        for worker in self._busy:
            worker.kill()
        while self._spares:
            self.end(self._spares.popleft())
        if self._busy or self._ending:
            await self._none_left.wait()

    def _take(self) -> Worker:
        if self.closed:
            raise UnavailableError("the decoder is closed")
        try:
            worker = self._spares.popleft() if self._spares else Worker()
        except OSError as error:
            raise UnavailableError(f"no decoding process could be started: {error}") from error
        self._busy.add(worker)
        # The next one starts while this one works.
        self.start()
        return worker

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)
        if self.closed and not self._busy and not self._ending:
            self._none_left.set()
