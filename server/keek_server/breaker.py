"""Circuit breakers: what does not answer is not asked by every feed, and is asked again by itself.

A breaker stands before one dependency of feeds. It **opens** after some failures in a row: from then on
callers are refused at once. Now and then a call like theirs is made all the same, to find out (half open):
the first answer closes it. Four things differ from the breakers of libraries:

- Nobody waits for a call that is made to find out, and nobody need come by for it.
- A failure counts when its call began after the one before had failed. One pause of this machine, after which
  all calls that were under way are late at the same time, is one failure.
- Who is cancelled says nothing, neither good nor bad.
- While a call has been under way for long, or the last one failed, nobody else waits beside it: a dependency
  that stalls would otherwise hold every feed that comes before its breaker opens.
"""

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, Final

from keek_server import metrics
from keek_server.errors import KeekError, UnavailableError

logger = logging.getLogger(__name__)

Call = Callable[[], Coroutine[Any, Any, object]]

FAILURES: Final = 3
"""In a row, before a breaker opens."""
RETRY_S: Final = 0.5
"""How often a call is made all the same."""
PATIENCE: Final = 0.4
"""Share of a call's deadline after which nobody else waits beside it."""


class Breaker:
    """Of one dependency, for the callers of one event loop."""

    def __init__(
        self,
        name: str,
        dependency: str,
        *,
        deadline_s: float,
        failures: int = FAILURES,
        retry_s: float = RETRY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Closed at first.

        Args:
            name: Of what is asked, for people.
            dependency: The same as a label of metrics, which several may share.
            deadline_s: The longest that a call takes: `asking` does not end it.
            failures: In a row, before it opens.
            retry_s: How long after the last one has ended a call is made while it is open.
            clock: Gives seconds.
        """
        self.name = name
        self._gauge = metrics.breakers_open.labels(dependency)
        self._counted: weakref.finalize[[], Breaker] | None = None
        """Takes this one out of the gauge: when it closes, or is gone while it is open."""
        self._patience_s = PATIENCE * deadline_s
        self._most = failures
        self._retry_s = retry_s
        self._clock = clock
        self._failures = 0
        self._failed = 0.0
        """When the last failure that counts was seen."""
        self._reason = ""
        self.asked: Call | None = None
        """Of the last one who came while not all was well."""
        self._finding_out: asyncio.Task[None] | None = None
        self._retired = False
        self._began: dict[int, float] = {}
        """When the calls that are under way began, the oldest first."""
        self._numbers = count()

    @property
    def is_open(self) -> bool:
        """Whether all callers are refused."""
        return self._failures >= self._most

    def check(self, call: Call) -> None:
        """For whoever is about to ask, or to wait in order to ask.

        Args:
            call: Makes the call, with `asking` in it, to find out whether it would be answered; maybe later,
                and more than once.

        Raises:
            UnavailableError: It would most likely be in vain; says why.
        """
        if not self._began and not self._failures:
            return
        self.asked = call
        if self.is_open:
            raise UnavailableError(f"{self.name} is left alone: {self._reason}")
        if self._began:
            waited_s = self._clock() - next(iter(self._began.values()))
            if waited_s > self._patience_s:
                raise UnavailableError(f"{self.name} has not answered for {waited_s * 1000:.0f} ms")
            if self._failures:
                raise UnavailableError(f"{self.name} is asked once more: {self._reason}")

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around one call that has a deadline: an UnavailableError is a failure, any other end of the block
        is an answer, but for a cancellation and other errors, which say nothing."""
        number, began = next(self._numbers), self._clock()
        self._began[number] = began
        try:
            yield
        except UnavailableError as error:
            self._fail(began, str(error))
            raise
        else:
            self._succeed()
        finally:
            del self._began[number]

    def retire(self) -> None:
        """Only those who have it already go on asking: it is not counted, and makes no calls of its own."""
        self._retired = True
        if self._finding_out is not None:
            self._finding_out.cancel()
        self._uncount()

    def _fail(self, began: float, reason: str) -> None:
        if self._failures and began < self._failed:
            return
        self._failed = self._clock()
        self._failures += 1
        self._reason = reason
        if self._failures == self._most and not self._retired:
            if self._finding_out is None or self._finding_out.done():
                self._finding_out = asyncio.create_task(_find_out(weakref.ref(self), self._retry_s))
            self._gauge.inc()
            self._counted = weakref.finalize(self, self._gauge.dec)
            self._counted.atexit = False
            logger.warning("%s is not asked any more, but every %g s: %s", self.name, self._retry_s, reason)

    def _succeed(self) -> None:
        if self._uncount():
            logger.warning("%s answers again", self.name)
        self._failures = 0

    def _uncount(self) -> bool:
        """Whether it was counted as open."""
        if self._counted is None:
            return False
        self._counted()
        self._counted = self.asked = None
        return True


async def _find_out(breaker: "weakref.ref[Breaker]", every_s: float) -> None:
    """Asks what is behind a breaker, until that closes or is gone."""
    while True:
        await asyncio.sleep(every_s)
        own = breaker()
        if own is None or not own.is_open:
            return
        call = own.asked
        del own
        if call is not None:
            try:
                await call()
            except KeekError:
                pass  # The breaker has seen it.
            except Exception:
                logger.exception("to find out whether it answers failed")
            del call
