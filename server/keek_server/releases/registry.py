"""The registry in SQL: which releases exist, and the plan of what is served."""

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from keek_server.clock import now_us
from keek_server.errors import FailedPreconditionError, NotFoundError
from keek_server.experiments.definitions import ExperimentDefinition, ExperimentState
from keek_server.releases.manifest import Candidate
from keek_server.releases.plan import Plan, ReleaseState, Trial, TrialKind
from keek_server.storage.database import Database
from keek_server.storage.tables import activations, experiments, releases


@dataclass(frozen=True, slots=True)
class Registered:
    """A release as the registry knows it."""

    release_id: str
    state: ReleaseState
    create_time_us: int
    manifest: dict[str, Any]
    """As JSON: it may be of another version of Keek."""


Change = Callable[[sa.Connection, Plan | None], Plan]
"""The plan that follows a plan; its `seq` and `time_us` are not read."""


class ReleaseRegistry:
    """Registers releases and changes the plan. A change is one row: it happened, or it did not."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, release: Candidate, state: ReleaseState = ReleaseState.READY) -> None:
        """Makes a release known, by its manifest unless it was refused; repeating it changes nothing."""
        row = {
            "release_id": release.release_id,
            "create_time_us": release.create_time_us,
            "manifest": release.model_dump(mode="json"),
            "state": state,
        }
        async with self._database.write() as connection:
            await connection.execute(self._database.insert(releases).values(row).on_conflict_do_nothing())

    async def retire(self, newest: int, held: Collection[str]) -> list[Registered]:
        """Takes leave of all releases but some: from here on no plan can name the others.

        Args:
            newest: How many of the newest stay, whatever serves.
            held: Releases that servers have open; they stay.

        Returns:
            What stays: the active release first, then what is tried, what a rollback would go to, what
            experiments pin, the newest and the held. The files and models of all others may go.
        """

        def work(connection: sa.Connection) -> list[Registered]:
            # No plan may come to name one that is left out here.
            self._database.lock_plan(connection)
            chosen = [*_planned(connection), *_pinned(connection), *_ready_ids(connection, newest), *held]
            c = releases.c
            gone = (c.state == ReleaseState.READY) & c.release_id.not_in(chosen)
            connection.execute(releases.update().where(gone).values(state=ReleaseState.REMOVED))
            ready = _releases().where(c.state == ReleaseState.READY)
            left = [_registered(row) for row in connection.execute(ready)]
            return sorted(left, key=lambda each: chosen.index(each.release_id))

        return await self._database.transact(work)

    async def removed(self, release_ids: Collection[str]) -> list[str]:
        """Those of some ids that no plan can name any more: removed or refused ones."""
        c = releases.c
        query = sa.select(c.release_id).where(c.release_id.in_(release_ids), c.state != ReleaseState.READY)
        async with self._database.read() as connection:
            return list((await connection.execute(query)).scalars())

    async def last_version(self) -> int:
        """The highest version number that a model of any release has or had; 0 when there is none."""
        towers = (releases.c.manifest[name]["version"].as_integer() for name in ("user_tower", "video_tower"))
        query = sa.select(*(sa.func.max(version) for version in towers))
        async with self._database.read() as connection:
            return max((number or 0 for number in (await connection.execute(query)).one()), default=0)

    async def get(self, release_id: str) -> Registered:
        """One release.

        Raises:
            NotFoundError: When no such release is registered.
        """
        async with self._database.read() as connection:
            row = (await connection.execute(_releases().where(releases.c.release_id == release_id))).first()
        if row is None:
            raise _unknown(release_id)
        return _registered(row)

    async def list(self, limit: int, before: tuple[int, str] | None = None) -> list[Registered]:
        """Releases, newest first.

        Args:
            limit: The most.
            before: `create_time_us` and id of the one that they come after.
        """
        order = sa.tuple_(releases.c.create_time_us, releases.c.release_id)
        query = _releases().order_by(*(column.desc() for column in order)).limit(limit)
        if before is not None:
            query = query.where(order < sa.tuple_(*before))
        async with self._database.read() as connection:
            return [_registered(row) for row in await connection.execute(query)]

    async def plan(self) -> Plan | None:
        """What is to be served; None before the first activation."""
        return await self._database.look(_newest)

    async def active(self) -> str | None:
        """The active release's id; None before the first activation."""
        plan = await self.plan()
        return None if plan is None else plan.release_id

    async def predecessor(self) -> str | None:
        """What a rollback would go to at present; None where there is nothing that could serve."""

        def work(connection: sa.Connection) -> str | None:
            before = _before(connection)
            state = sa.select(releases.c.state).where(releases.c.release_id == before)
            is_ready = connection.execute(state).scalar_one_or_none() == ReleaseState.READY
            return before if is_ready else None

        return await self._database.look(work)

    async def activate(
        self,
        release_id: str,
        reason: str,
        *,
        request_id: uuid.UUID | None = None,
        after_seq: int | None = None,
    ) -> Plan:
        """Makes a release the active one, and ends a trial.

        Args:
            release_id: A READY release.
            reason: For the history.
            request_id: Of the call: a repeated one gives the plan that the first one made.
            after_seq: Only while this is still the newest plan.

        Raises:
            NotFoundError: When no such release is registered.
            FailedPreconditionError: When it cannot serve, or `after_seq` is not the newest plan.
        """

        def change(connection: sa.Connection, _plan: Plan | None) -> Plan:
            _check_ready(connection, release_id)
            return Plan(0, release_id, 0, reason)

        return await self._change(change, request_id, after_seq)

    async def roll_back(
        self, reason: str, *, request_id: uuid.UUID | None = None, after_seq: int | None = None
    ) -> Plan:
        """Goes back to the release before the active one, and ends a trial.

        That is the last one that was active when the active one was activated other than by a rollback;
        what was gone back from, and not activated since, is not gone back to.

        Raises:
            FailedPreconditionError: When there is none that could serve; see also `activate`.
        """

        def change(connection: sa.Connection, plan: Plan | None) -> Plan:
            active = _required(plan).release_id
            release_id = _before(connection)
            if release_id is None:
                raise FailedPreconditionError(f"no release was active before {active}")
            _check_ready(connection, release_id)
            return Plan(0, release_id, 0, reason, is_rollback=True)

        return await self._change(change, request_id, after_seq)

    async def start_trial(
        self, trial: Trial, reason: str, *, request_id: uuid.UUID | None = None, after_seq: int | None = None
    ) -> Plan:
        """Tries a release beside the active one; takes the place of another trial.

        Raises:
            NotFoundError, FailedPreconditionError: As `activate`; also for the active release itself.
        """

        def change(connection: sa.Connection, plan: Plan | None) -> Plan:
            active = _required(plan).release_id
            _check_ready(connection, trial.release_id)
            if trial.release_id == active:
                raise FailedPreconditionError(f"release {active} is active: it cannot be tried beside itself")
            return Plan(0, active, 0, reason, trial=trial)

        return await self._change(change, request_id, after_seq)

    async def end_trial(
        self, reason: str, *, request_id: uuid.UUID | None = None, after_seq: int | None = None
    ) -> Plan:
        """Ends a trial; the active release stays.

        Raises:
            FailedPreconditionError: When there is none; see also `activate`.
        """

        def change(_connection: sa.Connection, plan: Plan | None) -> Plan:
            if _required(plan).trial is None:
                raise FailedPreconditionError("no release is tried at present")
            return Plan(0, _required(plan).release_id, 0, reason)

        return await self._change(change, request_id, after_seq)

    async def _change(self, change: Change, request_id: uuid.UUID | None, after_seq: int | None) -> Plan:
        def work(connection: sa.Connection) -> Plan:
            # Two changes at once would both follow the same plan.
            self._database.lock_plan(connection)
            if request_id is not None:
                made = connection.execute(_plans().where(activations.c.request_id == request_id)).first()
                if made is not None:
                    return _plan(made)
            plan = _newest(connection)
            if after_seq is not None and (plan is None or plan.seq != after_seq):
                raise FailedPreconditionError("the plan has changed meanwhile")
            row = _row(change(connection, plan)) | {"request_id": request_id}
            seq = connection.execute(activations.insert().values(row)).inserted_primary_key
            assert seq is not None
            return _plan(connection.execute(_plans().where(activations.c.seq == seq[0])).one())

        return await self._database.transact(work)


def _releases() -> "sa.Select[Any]":
    c = releases.c
    return sa.select(c.release_id, c.state, c.create_time_us, c.manifest)


def _registered(row: Any) -> Registered:
    return Registered(row.release_id, ReleaseState(row.state), row.create_time_us, row.manifest)


def _planned(connection: sa.Connection) -> list[str]:
    plan = _newest(connection)
    if plan is None:
        return []
    before = _before(connection)
    return [plan.release_id, *([plan.trial.release_id] if plan.trial else []), *([before] if before else [])]


def _pinned(connection: sa.Connection) -> list[str]:
    """What arms of running experiments pin."""
    running = sa.select(experiments.c.definition).where(experiments.c.state == ExperimentState.RUNNING)
    definitions = map(ExperimentDefinition.model_validate, connection.execute(running).scalars())
    return sorted({release_id for definition in definitions for release_id in definition.release_ids})


def _ready_ids(connection: sa.Connection, limit: int) -> list[str]:
    c = releases.c
    ready = sa.select(c.release_id).where(c.state == ReleaseState.READY)
    return list(connection.execute(ready.order_by(c.create_time_us.desc()).limit(limit)).scalars())


def _plans() -> "sa.Select[Any]":
    return sa.select(activations)


def _newest(connection: sa.Connection) -> Plan | None:
    row = connection.execute(_plans().order_by(activations.c.seq.desc()).limit(1)).first()
    return None if row is None else _plan(row)


def _plan(row: Any) -> Plan:
    trial = None
    if row.trial_release_id:
        trial = Trial(row.trial_release_id, TrialKind(row.trial_kind), row.trial_percent)
    return Plan(row.seq, row.release_id, row.activate_time_us, row.reason, row.is_rollback, trial)


def _row(plan: Plan) -> dict[str, Any]:
    trial = plan.trial
    return {
        "release_id": plan.release_id,
        "activate_time_us": now_us(),
        "reason": plan.reason,
        "is_rollback": plan.is_rollback,
        "trial_release_id": trial.release_id if trial else "",
        "trial_kind": trial.kind if trial else 0,
        "trial_percent": trial.percent if trial else 0.0,
    }


def _required(plan: Plan | None) -> Plan:
    if plan is None:
        raise FailedPreconditionError("no release is active yet: publish one first")
    return plan


def _check_ready(connection: sa.Connection, release_id: str) -> None:
    query = sa.select(releases.c.state).where(releases.c.release_id == release_id)
    state = connection.execute(query).scalar_one_or_none()
    if state is None:
        raise _unknown(release_id)
    if state == ReleaseState.REFUSED:
        raise FailedPreconditionError(f"release {release_id} was refused: it can never serve")
    if state == ReleaseState.REMOVED:
        raise FailedPreconditionError(f"the files of release {release_id} are gone: publish it again")


def _before(connection: sa.Connection) -> str | None:
    """What a rollback of the newest plan goes to."""
    c = activations.c
    arrived: list[str] = []
    left: set[str] = set()  # gone back from since they came last
    for release_id, is_rollback in connection.execute(sa.select(c.release_id, c.is_rollback).order_by(c.seq)):
        while is_rollback and arrived and arrived[-1] != release_id:
            left.add(arrived.pop())
        # Otherwise it was gone back to, or a trial beside it began or ended.
        if arrived[-1:] != [release_id]:
            arrived.append(release_id)
            left.discard(release_id)
    return next((each for each in reversed(arrived) if each != arrived[-1] and each not in left), None)


def _unknown(release_id: str) -> NotFoundError:
    return NotFoundError(f"no release {release_id!r} is registered")
