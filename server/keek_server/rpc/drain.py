"""The calls that run: a server that stops ends those that go on for too long, so that clients repeat them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Final

from keek_server.errors import UnavailableError

_MESSAGE: Final = "this server is stopping: call again, another one answers"
_RETRY_AFTER_S: Final = 0.1
_WATCH: Final = "Watch"
"""How the names of methods begin whose streams have no end of their own."""
_QUIET_S: Final = 0.01
"""Much longer than calls wait inside gRPC, shorter than any client waits before it calls again."""
_QUIET_WITHIN_S: Final = 0.25


class Drain:
    """Every call that runs, by its task, from the first to the last.

    gRPC itself would end calls as CANCELLED, which nobody repeats: those that run for too long, and what
    it has not handed over yet when it is told to stop (grpc issue 41785).
    """

    def __init__(self) -> None:
        self._calls: dict[asyncio.Task[object], bool] = {}
        self._ended: set[asyncio.Task[object]] = set()
        self._arrived = 0
        self._watches_refused = False
        self._all_refused = False

    def arrive(self) -> None:
        """Says that gRPC has handed over a call, of whatever kind."""
        self._arrived += 1

    @contextmanager
    def running(self, method: str) -> Iterator[None]:
        """Around a call's handler, in the call's own task.

        Args:
            method: Its full name, as `/keek.v1.VideoService/WatchVideo`.

        Raises:
            UnavailableError: When the server ends the call, or takes no further ones of its kind.
        """
        watches = _watches(method)
        task = asyncio.current_task()
        assert task is not None
        if self._all_refused or (watches and self._watches_refused):
            raise _stopping()
        self._calls[task] = watches
        try:
            yield
        except asyncio.CancelledError:
            # Otherwise its caller has gone.
            if task not in self._ended:
                raise
            task.uncancel()
            raise _stopping() from None
        finally:
            self._ended.discard(task)
            self._calls.pop(task, None)

    def end_watches(self) -> None:
        """Ends the streams that have no end of their own; no new ones are taken."""
        self._watches_refused = True
        self._end([task for task, watches in self._calls.items() if watches])

    async def refuse(self) -> None:
        """Takes no new calls; those that run go on. Returns when no more come, or they never cease to.

        Callers who were refused wait a little before they call again: nobody's call is inside gRPC then, nor
        on its way, and gRPC may be told to stop.
        """
        self._watches_refused = self._all_refused = True
        seen = -1
        with suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_WITHIN_S):
                while seen != self._arrived:
                    seen = self._arrived
                    await asyncio.sleep(_QUIET_S)

    def end_all(self) -> None:
        """Ends what still runs, once new calls are refused."""
        self._end(list(self._calls))

    def _end(self, tasks: list[asyncio.Task[object]]) -> None:
        for task in tasks:
            if task not in self._ended and task.cancel():
                self._ended.add(task)


@cache
def _watches(method: str) -> bool:
    return method.rpartition("/")[2].startswith(_WATCH)


def _stopping() -> UnavailableError:
    return UnavailableError(_MESSAGE, retry_after_s=_RETRY_AFTER_S)
