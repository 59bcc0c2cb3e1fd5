"""Goes back by itself from a release whose feeds turn out worse than those of the release before."""

import asyncio
import logging
import time
from dataclasses import dataclass, field

from keek_server import metrics
from keek_server.clock import now_us
from keek_server.errors import FailedPreconditionError, KeekError
from keek_server.releases.figures import ReleaseFigures
from keek_server.releases.fleet import Figures
from keek_server.releases.live import LiveRelease, Served
from keek_server.releases.opening import ServingRelease
from keek_server.releases.plan import Plan, TrialKind
from keek_server.releases.registry import ReleaseRegistry
from keek_server.releases.rollouts import Announcer
from keek_server.settings import Settings

logger = logging.getLogger(__name__)

_TIMES_WORSE = 2.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a release's feeds are held to."""

    min_feeds: int
    error_rate: float
    empty_rate: float

    def fault(self, own: Figures, before: Figures) -> str:
        """What is wrong with a release, in words; empty when nothing is, or too little was seen.

        Args:
            own: Of the release.
            before: Of the release that it is compared with: where that fails alike, as when Triton is
                down, going back would help nobody.
        """
        if own.feed_count < self.min_feeds:
            return ""
        for what, bound, count, count_before in (
            (
                "without their personalised part, which failed",
                self.error_rate,
                own.error_count,
                before.error_count,
            ),
            ("without any personalised video", self.empty_rate, own.empty_count, before.empty_count),
        ):
            rate = count / own.feed_count
            rate_before = count_before / before.feed_count if before.feed_count else 0.0
            if rate > bound and rate > _TIMES_WORSE * rate_before:
                return (
                    f"{count} of {own.feed_count} feeds {what} ({rate:.1%}); at most {bound:.1%} may be, "
                    f"and {rate_before:.1%} were before"
                )
        return ""


@dataclass(frozen=True, slots=True)
class _Arrival:
    """When the active release became so, and what feeds of the one before were like then."""

    release_id: str = ""
    time_us: int = 0
    before: Figures = field(default_factory=Figures)


class Watchdog:
    """Watches a canary for as long as it runs, and a release for a while after its activation."""

    def __init__(
        self,
        registry: ReleaseRegistry,
        live: LiveRelease,
        figures: ReleaseFigures,
        announcer: Announcer,
        settings: Settings,
    ) -> None:
        self._registry = registry
        self._live = live
        self._figures = figures
        self._announcer = announcer
        self._bounds = Bounds(
            settings.rollback_min_feeds, settings.rollback_error_rate, settings.rollback_empty_rate
        )
        self._watch_us = int(settings.rollback_watch_s * 1e6)
        self._window_s = settings.rollback_window_s
        self._poll_s = settings.heartbeat_s
        self._plan: Plan | None = None
        self._arrival = _Arrival()
        self._blind_until = -float("inf")

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.look()
            except KeekError as error:
                logger.warning("releases are not watched at present: %s", error)
            await asyncio.sleep(self._poll_s)

    async def look(self) -> None:
        """Judges what is served now, and goes back from it where it has to.

        Raises:
            UnavailableError: When the database does not answer.
        """
        served = self._live.served
        if served.active is None:
            return
        # A plan may stay undone for want of its trial: what is active is watched all the same.
        if self._plan is None or self._plan.seq != served.seq or self._live.problem:
            plan = await self._registry.plan()
            if plan is None or plan.release_id != served.active.release.id:
                return
            self._plan = plan
            self._arrive(plan, served)
        if not await self._judge_trial(self._plan, served):
            await self._judge_active(self._plan, served)

    def _arrive(self, plan: Plan, served: Served) -> None:
        """Keeps what the release before was like when another one came: nobody gets it any more."""
        if plan.release_id == self._arrival.release_id:
            return
        # What was gone back to is not gone back from.
        before = None if plan.is_rollback else served.previous
        figures = self._figures.of(before.release.id) if before else Figures()
        self._arrival = _Arrival(plan.release_id, plan.time_us, figures)

    async def _judge_trial(self, plan: Plan, served: Served) -> bool:
        """Whether a canary was ended."""
        trial = plan.trial
        if trial is None or trial.kind is not TrialKind.CANARY:
            return False
        if served.trial is None or served.trial[0].release_id != trial.release_id:
            return False
        if await self._is_blind(served.active):
            return False
        active = self._figures.of(plan.release_id)
        fault = self._bounds.fault(self._figures.of(trial.release_id), active)
        if not fault:
            return False
        await self._back(plan, f"canary {trial.release_id}: {fault}", is_trial=True)
        return True

    async def _judge_active(self, plan: Plan, served: Served) -> None:
        arrival = self._arrival
        # Without figures of the one before, whether it would be better is not known.
        if not arrival.before.feed_count or now_us() - arrival.time_us >= self._watch_us:
            return
        if await self._is_blind(served.previous):
            return
        fault = self._bounds.fault(self._figures.of(plan.release_id), arrival.before)
        if fault:
            await self._back(plan, f"release {plan.release_id}: {fault}", is_trial=False)

    async def _is_blind(self, back_to: ServingRelease | None) -> bool:
        """Whether what was counted says nothing: while Triton is down every release fails alike.

        That is asked of the release that would be gone back to, and holds until nothing counted
        meanwhile is in the window any more.
        """
        if back_to is None or not await self._live.answers(back_to):
            self._blind_until = time.monotonic() + self._window_s
        return time.monotonic() < self._blind_until

    async def _back(self, plan: Plan, reason: str, *, is_trial: bool) -> None:
        try:
            if is_trial:
                await self._registry.end_trial(f"by itself: {reason}"[:512], after_seq=plan.seq)
            else:
                await self._registry.roll_back(f"by itself: {reason}"[:512], after_seq=plan.seq)
        except FailedPreconditionError as error:
            # Another server was faster, or there is nothing to go back to.
            logger.info("nothing to go back from any more: %s (%s)", error, reason)
            return
        logger.error("went back by itself: %s", reason)
        metrics.rollbacks.labels("trial" if is_trial else "release").inc()
        self._live.notify()
        await self._announcer.announce()
