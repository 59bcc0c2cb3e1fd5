"""The releases that this server runs, and the swap to what the plan says."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from keek_server import metrics
from keek_server.errors import FailedPreconditionError, KeekError, SetupError, UnavailableError
from keek_server.releases.fresh import FreshVideos
from keek_server.releases.opening import ReleaseOpener, ServingRelease
from keek_server.releases.plan import Plan, Trial, TrialKind
from keek_server.releases.registry import ReleaseRegistry

logger = logging.getLogger(__name__)

_HELD_S = 1.0
"""For what is new in a release that is open: a rollback must not wait for long."""
_ASIDE_S = 5.0
"""For what is new in a release that is only opened to be looked at."""


@dataclass(frozen=True, slots=True)
class Served:
    """What this server runs: replaced as a whole, so that nobody sees half a swap."""

    seq: int = 0
    """The last plan that was carried out; 0 before the first."""
    active: ServingRelease | None = None
    trial: tuple[Trial, ServingRelease] | None = None
    previous: ServingRelease | None = None
    """What was active before: it stays up to date, so that going back is as quick as the call."""
    pinned: tuple[ServingRelease, ...] = ()
    """What arms of experiments pin."""

    @property
    def held(self) -> list[ServingRelease]:
        """All that are open, what serves most first."""
        found = [*self.serving, *([self.previous] if self.previous else [])]
        return list({each.release.id: each for each in found}.values())

    @property
    def serving(self) -> list[ServingRelease]:
        """Those that answer requests."""
        own = (self.active, self.trial[1] if self.trial else None, *self.pinned)
        return [each for each in own if each is not None]


class LiveRelease:
    """Follows the plan. A request asks `serving` once, at its entry, and keeps what it got."""

    def __init__(self, registry: ReleaseRegistry, opener: ReleaseOpener, *, poll_s: float) -> None:
        self._registry = registry
        self._opener = opener
        self._poll_s = poll_s
        self._preparing: FreshVideos | None = None
        self._unopened = ""
        self._pins: frozenset[str] = frozenset()
        self._unpinned: set[str] = set()
        """Pins that could not be opened, which was said."""
        self._first = asyncio.Event()
        self._woken = asyncio.Event()
        self.served = Served()
        self.problem = ""
        """Why the newest plan is not carried out; empty when it is."""
        self.settled = asyncio.Event()
        """Set once what should be served first is: the plan was carried out, or there is none."""
        self.changed = asyncio.Event()
        """Set whenever `served` or `problem` changes; whoever waits for it clears it."""

    @property
    def current(self) -> ServingRelease | None:
        """The active release; None until the first one is ready."""
        return self.served.active

    def followed(self) -> list[FreshVideos]:
        """What changes of the catalogue have to reach: all that is open, and what is made ready."""
        own = [each.fresh for each in self.served.held]
        return own if self._preparing is None else [*own, self._preparing]

    async def wait(self) -> ServingRelease:
        """The current release, waiting for the first one."""
        await self._first.wait()
        return self.serving()

    def serving(self, user_id: str = "") -> ServingRelease:
        """The release that a user gets: the active one, or a canary that takes this user.

        Raises:
            UnavailableError: Before the first one is active.
        """
        served = self.served
        if served.active is None:
            raise UnavailableError("no release is active yet", retry_after_s=2.0)
        if served.trial and user_id:
            trial, release = served.trial
            if trial.kind is TrialKind.CANARY and trial.takes(user_id):
                return release
        return served.active

    def pin(self, release_ids: Collection[str]) -> None:
        """Says which releases arms of experiments pin, from here on: they are opened soon."""
        self._pins = frozenset(release_ids)
        self.notify()

    def pinned(self, release_id: str) -> ServingRelease | None:
        """A release that an arm pins; None where this server has not opened it, or cannot."""
        return _find(self.served.held, release_id)

    @asynccontextmanager
    async def opened(self, release_id: str) -> AsyncIterator[ServingRelease]:
        """A release, ready to answer until the block ends; it need not serve anyone.

        Raises:
            FailedPreconditionError: When its files or models are gone.
            UnavailableError: When Triton does not answer.
        """
        yield _find(self.served.held, release_id) or await self._open_aside(release_id)

    async def answers(self, serving: ServingRelease) -> bool:
        """Whether Triton, and Milvus where it is used, answer for a release at present."""
        return await self._opener.answers(serving.release)

    def notify(self) -> None:
        """Says that the plan may have changed."""
        self._woken.set()

    async def follow(self) -> None:
        """Carries out whatever the plan says, until cancelled."""
        try:
            await self._follow()
        finally:
            for each in self.served.held:
                each.retire()

    async def _follow(self) -> None:
        said = ""
        while True:
            self._woken.clear()
            try:
                await self.refresh()
            except KeekError as error:
                if str(error) != said:
                    logger.warning(
                        "staying with release %s: %s", self.current and self.current.release.id, error
                    )
                said = str(error)
            else:
                said = ""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._woken.wait()

    async def refresh(self) -> None:
        """Carries out the newest plan; then has Triton load again what it has lost, and opens what is missing
        for a rollback.

        Raises:
            KeekError: When something of it cannot serve; what serves stays.
        """
        plan = await self._registry.plan()
        if plan is None:
            self.settled.set()
            return
        try:
            await self._while_newest(plan, self._advance(plan))
        except KeekError as error:
            self._tell(str(error))
            raise
        finally:
            # A canary that cannot be opened is no reason to wait for longer.
            if self.served.active is not None:
                self.settled.set()
        self._tell("")

    async def _advance(self, plan: Plan) -> None:
        if plan.seq == self.served.seq:
            await self._keep_ready()
            return
        try:
            await self._carry_out(plan)
        except KeekError:
            if self.current is not None:
                # What cannot serve, a trial perhaps, is no reason to leave the rest undone.
                await self._keep_ready()
            raise

    async def _open_aside(self, release_id: str) -> ServingRelease:
        """Opens a release that nobody keeps up to date, and brings what time allows into it."""
        try:
            serving = await self._opener.open(release_id)
        except SetupError as error:
            raise FailedPreconditionError(f"release {release_id} cannot be opened: {error}") from error
        await _catch_up_within(serving, _ASIDE_S)
        return serving

    async def _while_newest(self, plan: Plan, work: Coroutine[Any, Any, None]) -> None:
        """Triton may take minutes to load something: a newer plan, which may go back, does not wait."""
        task = asyncio.create_task(work)
        is_woken = False
        try:
            while not task.done():
                is_woken = is_woken or self._woken.is_set()
                self._woken.clear()
                woken = asyncio.create_task(self._woken.wait())
                await asyncio.wait([task, woken], timeout=self._poll_s, return_when=asyncio.FIRST_COMPLETED)
                woken.cancel()
                if not task.done() and await self._is_outdated(plan):
                    logger.info("plan %d is outdated before it is carried out", plan.seq)
                    # The next look at the plan comes at once.
                    self._woken.set()
                    return
            await task
        finally:
            task.cancel()
            await asyncio.wait([task])
            if is_woken:
                # What was said meanwhile, other pins perhaps, the work may have been past already.
                self._woken.set()

    async def _is_outdated(self, plan: Plan) -> bool:
        try:
            newest = await self._registry.plan()
        except KeekError:
            return False
        return newest is not None and newest.seq != plan.seq

    async def _keep_ready(self) -> None:
        # First: what nobody pins any more may be what Triton cannot load.
        self._let_go_of_pinned()
        await self._keep_loaded()
        await self._open_pinned()
        await self._open_previous()

    def _let_go_of_pinned(self) -> None:
        kept = tuple(each for each in self.served.pinned if each.release.id in self._pins)
        if kept != self.served.pinned:
            self._swap(replace(self.served, pinned=kept))

    async def _open_pinned(self) -> None:
        """Opens what arms pin."""
        for release_id in sorted(self._pins - {each.release.id for each in self.served.pinned}):
            try:
                pinned = await self._ready(release_id)
            except KeekError as error:
                if release_id not in self._unpinned:
                    logger.warning("release %s, which an arm pins, is not served: %s", release_id, error)
                self._unpinned.add(release_id)
            else:
                self._unpinned.discard(release_id)
                self._swap(replace(self.served, pinned=(*self.served.pinned, pinned)))

    async def _carry_out(self, plan: Plan) -> None:
        before = self.served
        active = await self._ready(plan.release_id)
        previous = before.previous if active is before.active else before.active
        # The active release does not wait for a trial, which may be broken. A canary that takes more users
        # loses none of its own meanwhile.
        kept = _kept(before.trial, plan.trial)
        self._swap(replace(before, active=active, trial=kept, previous=previous))
        if plan.trial is not None and kept is None:
            trial = await self._ready(plan.trial.release_id)
            self._swap(replace(self.served, trial=(plan.trial, trial)))
        self._swap(replace(self.served, seq=plan.seq))
        metrics.plan_seq.set(plan.seq)
        logger.info("plan %d: serving release %s%s", plan.seq, plan.release_id, _beside(plan.trial))

    async def _ready(self, release_id: str) -> ServingRelease:
        """A release with all that the catalogue has: nothing that was uploaded may vanish for a moment."""
        held = _find(self.served.held, release_id)
        if held is not None:
            await self._opener.ensure_loaded(held.release)
            # It is followed: what it still lacks is no reason not to go back to it.
            await _catch_up_within(held, _HELD_S)
            return held
        serving = await self._opener.open(release_id)
        self._preparing = serving.fresh
        try:
            await serving.fresh.catch_up()
            await self._opener.bring(serving, self.served.serving, self.served.held)
        finally:
            self._preparing = None
        return serving

    async def _keep_loaded(self) -> None:
        for serving in self.served.serving:
            await self._opener.ensure_loaded(serving.release)

    async def _open_previous(self) -> None:
        """Opens what was active before this server started: a rollback must not wait for it."""
        if self.served.previous is not None:
            return
        release_id = await self._registry.predecessor()
        active = self.served.active
        if release_id is None or release_id == self._unopened:
            return
        if active is not None and active.release.id == release_id:
            return  # What comes after it cannot be served yet.
        try:
            previous = await self._ready(release_id)
        except KeekError as error:
            # A rollback tries again, and says why not.
            logger.warning("going back to release %s would take longer: %s", release_id, error)
            self._unopened = release_id
        else:
            self._swap(replace(self.served, previous=previous))

    def _swap(self, served: Served) -> None:
        before, self.served = self.served.held, served
        for each in before:
            if _find(served.held, each.release.id) is None:
                each.retire()
        self._opener.arrange(served.held)
        self.changed.set()
        self._first.set()

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self.changed.set()


async def _catch_up_within(serving: ServingRelease, seconds: float) -> None:
    """Brings what time allows into a release."""
    try:
        async with asyncio.timeout(seconds):
            await serving.fresh.catch_up()
    except (KeekError, TimeoutError) as error:
        reason = str(error) or "too much for the time"
        logger.warning("release %s lacks what is new: %s", serving.release.id, reason)


def _find(releases: Iterable[ServingRelease], release_id: str) -> ServingRelease | None:
    return next((each for each in releases if each.release.id == release_id), None)


def _kept(
    before: tuple[Trial, ServingRelease] | None, wanted: Trial | None
) -> tuple[Trial, ServingRelease] | None:
    """What is tried already of what is to be tried."""
    if before is None or wanted is None or before[0].release_id != wanted.release_id:
        return None
    return wanted, before[1]


def _beside(trial: Trial | None) -> str:
    if trial is None:
        return ""
    return f", and {trial.release_id} as {trial.kind.name.lower()} of {trial.percent:g} %"
