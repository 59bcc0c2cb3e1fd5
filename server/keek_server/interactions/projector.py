"""The projector: follows the log and applies it to the projection."""

import asyncio
import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass

from keek_server import metrics
from keek_server.clock import now_us
from keek_server.errors import KeekError
from keek_server.interactions.log import InteractionLog
from keek_server.interactions.projection import Projection
from keek_server.interactions.rows import LoggedInteraction
from keek_server.interactions.writer import Lease, LeaseLostError, ProjectionWriter
from keek_server.settings import Settings

logger = logging.getLogger(__name__)

_ROWS = 1000
_RETRY_S = 0.5
_WAIT_POLL_S = 0.005
_INSPECT_S = 10.0


@dataclass(slots=True)
class _Target:
    """A generation that this projector advances."""

    number: int
    seq: int


class Projector:
    """Applies what stands in the log behind the watermark, for as long as it holds the lease.

    Each server runs one, and one of them holds the lease; the others stand by, and one takes over
    when it runs out. Rows that the holder's own server appended are applied at once (`notify`),
    those of other servers within `projection_poll_s`. Where Redis holds no projection of this log, or one
    that a replay would not give, a new generation is built while the old one, if there is one, is
    still read.
    """

    def __init__(
        self, log: InteractionLog, projection: Projection, writer: ProjectionWriter, settings: Settings
    ) -> None:
        self._log = log
        self._projection = projection
        self._writer = writer
        self._renew_s = settings.projection_lease_s / 4
        self._poll_s = settings.projection_poll_s
        self._wake = asyncio.Event()
        self._advanced = asyncio.Condition()
        self._applied = 0
        self._waiting = 0
        self._token = ""
        self._renewed = 0.0
        self._inspected = -math.inf
        self._serving: _Target | None = None
        self._building: _Target | None = None
        self._cleaning: asyncio.Task[None] | None = None

    @property
    def holds_lease(self) -> bool:
        """Whether this projector is the one that acts, as far as it knows."""
        return bool(self._token)

    def notify(self) -> None:
        """Says that the log has grown."""
        self._wake.set()

    async def wait_for(self, seq: int, timeout_s: float) -> bool:
        """Waits until readers see the projection at `seq` or later; False when they do not in time."""
        self._waiting += 1
        self._wake.set()
        try:
            async with asyncio.timeout(timeout_s), self._advanced:
                await self._advanced.wait_for(lambda: self._applied >= seq)
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
        return True

    async def run(self) -> None:
        """Follows the log until cancelled; then gives the lease back."""
        try:
            while True:
                try:
                    await self._turn()
                except KeekError as error:
                    logger.warning("the projection waits: %s", error)
                    if isinstance(error, LeaseLostError):
                        self._step_down()
                    await asyncio.sleep(_RETRY_S)
        finally:
            await self._leave()

    async def _turn(self) -> None:
        """One round: keep the lease, then apply what there is, or wait for more."""
        lease = await self._keep_lease()
        if lease is None:
            await self._stand_by()
            return
        if self._building is None:
            await self._build_if_needed(lease)
        self._wake.clear()
        await self._advance_serving()
        await self._advance_building()
        if self._building is None:
            await self._wait(self._poll_s)

    async def _keep_lease(self) -> Lease | None:
        if self._token and time.monotonic() - self._renewed < self._renew_s:
            return Lease(self._token, rebuild_wanted=False)
        lease = await self._writer.acquire(self._token)
        self._renewed = time.monotonic()
        if lease is None or lease.token != self._token:
            self._step_down()
            self._token = lease.token if lease else ""
            metrics.projector_active.set(self.holds_lease)
        return lease

    def _step_down(self) -> None:
        self._token = ""
        self._serving = self._building = None
        self._inspected = -math.inf
        metrics.projector_active.set(0)

    async def _stand_by(self) -> None:
        """Watches the other's progress while somebody waits for it, until it is time to ask for the lease."""
        until = time.monotonic() + self._renew_s
        while (left_s := until - time.monotonic()) > 0:
            self._wake.clear()
            if self._waiting:
                await self._advance_to(await self._projection.watermark())
                await asyncio.sleep(_WAIT_POLL_S)
            else:
                await self._wait(left_s)

    async def _build_if_needed(self, lease: Lease) -> None:
        is_due = time.monotonic() - self._inspected > _INSPECT_S
        if (is_due and await self._inspect()) or lease.rebuild_wanted:
            self._building = await self._begin()
        if is_due:
            # Now, and not before: what failed on the way is soon tried again.
            self._inspected = time.monotonic()

    async def _inspect(self) -> bool:
        """Compares the current generation with the log; True when another one has to be built."""
        current = await self._writer.current()
        if current is None:
            self._serving = None
            return True
        if not await self._log.holds(current.seq, current.tail):
            logger.warning("Redis holds rows that the log does not: nobody reads it until it is built anew")
            self._serving = None
            self._log.forget_recent()
            await self._writer.retract(self._token)
            return True
        if not self._writer.has_these_settings(current):
            # It stays as it is, and is read, until the next one is complete.
            self._serving = None
            return True
        if self._serving is None:
            self._serving = _Target(current.number, current.seq)
            await self._advance_to(current.seq)
        is_pruned = current.source != self._writer.source(await self._log.extent())
        # An older one is what a projector left that died while it swept up, a newer one while it built.
        generations = await self._writer.generations()
        if min(generations, default=current.number) < current.number:
            self._clean(current.number)
        return is_pruned or max(generations, default=0) > current.number

    async def _begin(self) -> _Target:
        extent = await self._log.extent()
        number = await self._writer.begin(self._token, self._writer.source(extent), extent.pruned_seq)
        logger.info("building generation %d of the projection", number)
        return _Target(number, extent.pruned_seq)

    async def _advance_serving(self) -> None:
        if self._serving is None:
            return
        while rows := await self._apply(self._serving):
            metrics.projection_lag.observe(max(0.0, (now_us() - rows[0].record_time_us) / 1e6))
            await self._advance_to(self._serving.seq)
            if len(rows) < _ROWS:
                return

    async def _advance_building(self) -> None:
        target = self._building
        if target is None or len(await self._apply(target)) == _ROWS:
            return
        if self._serving is not None and target.seq < self._serving.seq:
            return
        await self._writer.publish(self._token, target.number)
        logger.info("generation %d of the projection is read from now on", target.number)
        self._serving, self._building = target, None
        await self._advance_to(target.seq)
        self._clean(target.number)

    async def _apply(self, target: _Target) -> list[LoggedInteraction]:
        rows = await self._log.read(target.seq, _ROWS)
        if rows:
            target.seq = await self._writer.apply(self._token, target.number, target.seq, rows)
        return rows

    def _clean(self, generation: int) -> None:
        """Removes older generations in the background; what is left of them, an inspection finds."""
        if self._cleaning is None or self._cleaning.done():
            self._cleaning = asyncio.create_task(self._clean_before(generation))

    async def _clean_before(self, generation: int) -> None:
        try:
            await self._writer.drop_before(generation)
        except KeekError as error:
            logger.warning("older generations of the projection stay: %s", error)

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _advance_to(self, seq: int) -> None:
        async with self._advanced:
            # Also backwards: an emptied Redis starts again from 0.
            self._applied = seq
            self._advanced.notify_all()
        metrics.projection_seq.set(seq)

    async def _leave(self) -> None:
        if self._cleaning is not None:
            self._cleaning.cancel()
            await asyncio.wait([self._cleaning])
        if self._token:
            with suppress(KeekError):
                await self._writer.release(self._token)
            self._step_down()
