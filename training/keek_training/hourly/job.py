"""One round of the hourly job: its steps in order, each begun where the last process ended.

Every step finds out by itself whether it was done already, so that a process may be killed between a
step and the note of it. The note before a step counts its tries: what fails again and again is given
up, and the next round begins with what is new by then.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from keek_server.errors import KeekError
from keek_training.gates.verdict import RefusedError
from keek_training.hourly.lock import alone
from keek_training.hourly.state import Refusal, Round, State, Step
from keek_training.publishing.publish import HeldUpError

logger = logging.getLogger(__name__)

MOST_TRIES: Final = 3
"""How often a step is begun before its round is given up."""


class Steps(Protocol):
    """What a round is made of."""

    def plan(self, refusal: Refusal | None) -> Round | str:
        """The next round, or why there is none."""
        ...

    def is_current(self, current: Round) -> bool:
        """Whether a round is worth going on with: the run that it is based on still serves."""
        ...

    def train(self, current: Round) -> None:
        """Trains the round's run, unless that is done."""
        ...

    def export(self, current: Round) -> None:
        """Exports it, unless that is done."""
        ...

    def rank(self, current: Round) -> None:
        """Gives it a ranker if the log teaches one, unless that is done; it goes on without one otherwise."""
        ...

    def publish(self, current: Round) -> str:
        """Publishes it, unless that is done; the release's id.

        Raises:
            RefusedError: When a gate refuses it.
            HeldUpError: When a release is tried, or the plan has changed since the round began.
        """
        ...

    def feeds(self) -> int:
        """Writes the cached feeds of the release that serves; how many."""
        ...

    def clean_up(self) -> None:
        """Removes runs that nobody goes back to."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round came to."""

    release_id: str
    """Published; empty when there was no reason to."""
    reason: str
    """Why nothing was published; empty when something was."""
    cached_feeds: int


def run_round(folder: Path, steps: Steps) -> Outcome:
    """Finishes the round that is under way, or does a new one.

    Args:
        folder: Of the state and the lock.
        steps: What is done.

    Raises:
        SetupError: When another process does the hourly job.
        RefusedError: When gates refuse the model; the cached feeds of the release that serves are new then.
        KeekError: When a step fails; the next round begins with it. The cached feeds are new, too, unless
            it was they that failed.
    """
    with alone(folder):
        return _Job(folder, steps).run()


class _Job:
    def __init__(self, folder: Path, steps: Steps) -> None:
        self._folder = folder
        self._steps = steps
        self._state = State.load(folder)
        self._fed = False
        """Whether the cached feeds were written, or could not be."""

    def run(self) -> Outcome:
        try:
            return self._run()
        except Exception:
            self._refresh()
            raise

    def _run(self) -> Outcome:
        current = self._resumed()
        if current is None:
            planned = self._steps.plan(self._state.refusal)
            if isinstance(planned, str):
                logger.info("nothing is published: %s", planned)
                return Outcome("", planned, self._feeds())
            current = planned
            if current.replaces:
                logger.info("run %s again, with a new index", current.run)
            else:
                logger.info("run %s, from %s", current.run, current.base or "the whole log")
        try:
            return self._finish(current)
        except RefusedError as error:
            self._give_up(current, str(error))
            raise

    def _resumed(self) -> Round | None:
        """The round under way, if it is worth going on with."""
        current = self._state.round
        if current is None:
            return None
        if current.tries >= MOST_TRIES:
            self._give_up(current, f"step {current.step} was begun {current.tries} times in vain")
            return None
        if current.step is not Step.FEEDS and not self._steps.is_current(current):
            logger.info("run %s is dropped: its base does not serve any more, or it was tried", current.run)
            self._save(None)
            return None
        logger.info("going on with run %s at step %s", current.run, current.step)
        return current

    def _finish(self, current: Round) -> Outcome:
        steps = self._steps
        if current.step is Step.TRAIN:
            current = self._begin(current)
            steps.train(current)
            current = self._next(current, Step.EXPORT)
        if current.step is Step.EXPORT:
            current = self._begin(current)
            steps.export(current)
            current = self._next(current, Step.RANK)
        if current.step is Step.RANK:
            current = self._begin(current)
            steps.rank(current)
            current = self._next(current, Step.PUBLISH)
        if current.step is Step.PUBLISH:
            waiting, current = current, self._begin(current)
            try:
                current = current.model_copy(update={"release_id": steps.publish(current)})
            except HeldUpError as error:
                logger.info("run %s is not published now: %s", current.run, error)
                # No fault of the round: the next one goes on with it, if its base still serves then.
                self._save(waiting)
                return Outcome("", str(error), self._feeds())
            current = self._next(current, Step.FEEDS)
        current = self._begin(current)
        count = self._feeds()
        steps.clean_up()
        self._released(current)
        return Outcome(current.release_id, "", count)

    def _begin(self, current: Round) -> Round:
        logger.info("step %d of %d: %s", list(Step).index(current.step) + 1, len(Step), current.step)
        begun = current.model_copy(update={"tries": current.tries + 1})
        self._save(begun)
        return begun

    def _next(self, current: Round, step: Step) -> Round:
        reached = current.model_copy(update={"step": step, "tries": 0})
        self._save(reached)
        return reached

    def _save(self, current: Round | None) -> None:
        self._state = self._state.model_copy(update={"round": current})
        self._state.save(self._folder)

    def _give_up(self, current: Round, reason: str) -> None:
        logger.warning("run %s is given up: %s", current.run, reason)
        if current.step is Step.FEEDS:
            # Its release serves: nothing about the model was refused.
            self._released(current)
            return
        self._state = State(refusal=self._refused(current, reason))
        self._state.save(self._folder)

    def _refused(self, current: Round, reason: str) -> Refusal:
        """What is not tried again: of the log and of the catalogue, which are refused one by one."""
        new, earlier = current.new, self._state.refusal
        if earlier is not None and earlier.log_id != new.log_id:
            earlier = None
        if current.replaces and earlier is not None:
            return earlier.model_copy(update={"catalogue_seq": current.catalogue_seq})
        return Refusal(
            run=current.run,
            reason=reason,
            log_id=new.log_id,
            last_seq=new.last_seq,
            catalogue_seq=earlier.catalogue_seq if earlier else current.catalogue_seq,
        )

    def _released(self, current: Round) -> None:
        # A new index says nothing of the training that was refused before it.
        self._state = State(refusal=self._state.refusal if current.replaces else None)
        self._state.save(self._folder)

    def _feeds(self) -> int:
        self._fed = True
        return self._steps.feeds()

    def _refresh(self) -> None:
        """The release that serves goes on, and so do its cached feeds: otherwise they would run out."""
        if self._fed:
            return
        try:
            self._feeds()
        except KeekError as error:
            logger.warning("the cached feeds stay as they are: %s", error)
