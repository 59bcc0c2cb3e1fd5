"""The registry in SQL: which experiments exist, and which of them run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from keek_server.clock import now_us
from keek_server.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from keek_server.experiments.assignment import BUCKETS, Running, free_buckets
from keek_server.experiments.definitions import CONTROL, ExperimentDefinition, ExperimentState
from keek_server.releases.plan import ReleaseState
from keek_server.storage.database import Database
from keek_server.storage.tables import activations, releases
from keek_server.storage.tables import experiments as table

_OVER: Final = (ExperimentState.STOPPED, ExperimentState.CONCLUDED)


@dataclass(frozen=True, slots=True)
class StoppedArm:
    """An arm that a guardrail has stopped."""

    name: str
    reason: str
    time_us: int


@dataclass(frozen=True, slots=True)
class Experiment:
    """An experiment as the registry knows it."""

    definition: ExperimentDefinition
    state: ExperimentState
    create_time_us: int
    start_time_us: int | None = None
    stop_time_us: int | None = None
    weights_time_us: int | None = None
    """When the weights changed while it ran; None when they never did."""
    review_time_us: int = 0
    buckets: tuple[tuple[int, int], ...] = ()
    stopped_arms: tuple[StoppedArm, ...] = ()
    winner: str = ""
    conclusion: str = ""

    @property
    def id(self) -> str:
        """Its name for ever."""
        return self.definition.experiment_id

    @property
    def running(self) -> Running:
        """As assignment needs it."""
        return Running(self.definition, self.buckets, frozenset(arm.name for arm in self.stopped_arms))


Change = Callable[[sa.Connection, Experiment], dict[str, Any]]
"""The columns that become others."""


class ExperimentRegistry:
    """Every change is one transaction, and repeated does nothing more."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, definition: ExperimentDefinition) -> Experiment:
        """Makes a draft.

        Raises:
            AlreadyExistsError: When another one has the id.
        """

        def work(connection: sa.Connection) -> Experiment:
            row = {
                "experiment_id": definition.experiment_id,
                "state": ExperimentState.DRAFT,
                "definition": definition.model_dump(mode="json"),
                "buckets": [],
                "create_time_us": now_us(),
                "review_time_us": 0,
                "stopped_arms": [],
                "winner": "",
                "conclusion": "",
            }
            connection.execute(self._database.insert(table).values(row).on_conflict_do_nothing())
            made = _one(connection, definition.experiment_id)
            if made.definition != definition:
                raise AlreadyExistsError(f"there is another experiment {definition.experiment_id}")
            return made

        return await self._database.transact(work)

    async def update(self, definition: ExperimentDefinition) -> Experiment:
        """Changes a draft, or what may change of a running one.

        Raises:
            NotFoundError: When there is none of that id.
            FailedPreconditionError: When it is over, or something would change that must not.
        """

        def change(_connection: sa.Connection, own: Experiment) -> dict[str, Any]:
            if own.state in _OVER:
                raise FailedPreconditionError(f"experiment {own.id} is over: nothing of it can change")
            columns: dict[str, Any] = {"definition": definition.model_dump(mode="json")}
            if own.state is ExperimentState.RUNNING:
                if own.definition.while_running() != definition.while_running():
                    raise FailedPreconditionError(
                        f"experiment {own.id} runs: only weights, overrides, description, adaptation and"
                        " guardrails can change"
                    )
                if _weights(own.definition) != _weights(definition):
                    columns["weights_time_us"] = now_us()
            return columns

        return await self._change(definition.experiment_id, change)

    async def start(self, experiment_id: str) -> Experiment:
        """Gives an experiment its users.

        Raises:
            NotFoundError: When there is none of that id.
            FailedPreconditionError: When it is over, its layer has not so many users left, another layer's
                experiment sets the same parameters, a release that it pins cannot serve, or one whose ranker
                it wants has none.
        """

        def change(connection: sa.Connection, own: Experiment) -> dict[str, Any]:
            if own.state is ExperimentState.RUNNING:
                return {}
            if own.state in _OVER:
                raise FailedPreconditionError(f"experiment {own.id} is over: it cannot be started again")
            others = _all(connection, table.c.state == ExperimentState.RUNNING)
            _check_parameters(own, others)
            _check_releases(connection, own.definition)
            _check_rankers(connection, own.definition)
            return {
                "state": ExperimentState.RUNNING,
                "start_time_us": now_us(),
                "buckets": _buckets(own.definition, others),
            }

        return await self._change(experiment_id, change)

    async def stop(self, experiment_id: str) -> Experiment:
        """Ends it; a draft ends without having begun.

        Raises:
            NotFoundError: When there is none of that id.
        """

        def change(_connection: sa.Connection, own: Experiment) -> dict[str, Any]:
            if own.state in _OVER:
                return {}
            return {"state": ExperimentState.STOPPED, "stop_time_us": now_us()}

        return await self._change(experiment_id, change)

    async def conclude(self, experiment_id: str, winner: str, conclusion: str) -> Experiment:
        """Notes what was learnt, and ends it.

        Raises:
            NotFoundError: When there is none of that id.
            InvalidArgumentError: When the winner is no arm.
            FailedPreconditionError: When it never ran, or something else was concluded before.
        """

        def change(_connection: sa.Connection, own: Experiment) -> dict[str, Any]:
            if winner and winner not in [arm.name for arm in own.definition.arms]:
                raise InvalidArgumentError.of("winner", f"is no arm of {own.id}")
            if own.start_time_us is None:
                raise FailedPreconditionError(f"experiment {own.id} never ran")
            if own.state is ExperimentState.CONCLUDED:
                if (own.winner, own.conclusion) == (winner, conclusion):
                    return {}
                raise FailedPreconditionError(f"experiment {own.id} is concluded: {own.conclusion}")
            return {
                "state": ExperimentState.CONCLUDED,
                "stop_time_us": own.stop_time_us or now_us(),
                "winner": winner,
                "conclusion": conclusion,
            }

        return await self._change(experiment_id, change)

    async def adapt(self, experiment_id: str, weights: Mapping[str, float]) -> Experiment:
        """Gives the arms of a running experiment other weights, by arm; of others nothing changes.

        Raises:
            NotFoundError: When there is none of that id.
        """

        def change(_connection: sa.Connection, own: Experiment) -> dict[str, Any]:
            new = own.definition.with_weights(weights)
            if own.state is not ExperimentState.RUNNING or new == own.definition:
                return {}
            return {"definition": new.model_dump(mode="json"), "weights_time_us": now_us()}

        return await self._change(experiment_id, change)

    async def stop_arm(self, experiment_id: str, arm: str, reason: str) -> Experiment:
        """Has an arm's users get the usual feeds. The control goes on as long as the experiment does.

        Raises:
            NotFoundError: When there is none of that id.
        """

        def change(_connection: sa.Connection, own: Experiment) -> dict[str, Any]:
            names = [each.name for each in own.definition.arms]
            assert arm in names
            assert arm != names[CONTROL]
            stopped = [[each.name, each.reason, each.time_us] for each in own.stopped_arms]
            if own.state is not ExperimentState.RUNNING or arm in [name for name, *_ in stopped]:
                return {}
            return {"stopped_arms": [*stopped, [arm, reason, now_us()]]}

        return await self._change(experiment_id, change)

    async def claim_review(self, experiment_id: str, before_us: int) -> bool:
        """Whether it is for the caller to look at the figures of a running experiment: nobody else has since.

        Args:
            experiment_id: Which.
            before_us: What was looked at later than this need not be looked at again.
        """

        def work(connection: sa.Connection) -> bool:
            c = table.c
            due = (c.state == ExperimentState.RUNNING) & (c.review_time_us < before_us)
            claim = table.update().where((c.experiment_id == experiment_id) & due)
            return connection.execute(claim.values(review_time_us=now_us())).rowcount > 0

        return await self._database.transact(work)

    async def get(self, experiment_id: str) -> Experiment:
        """One experiment.

        Raises:
            NotFoundError: When there is none of that id.
        """
        return await self._database.look(lambda connection: _one(connection, experiment_id))

    async def running(self) -> list[Experiment]:
        """Those that run."""
        return await self._database.look(
            lambda connection: _all(connection, table.c.state == ExperimentState.RUNNING)
        )

    async def list(self, limit: int, before: tuple[int, str] | None = None) -> list[Experiment]:
        """Experiments, the latest first.

        Args:
            limit: The most.
            before: `create_time_us` and id of the one that they come after.
        """
        order = sa.tuple_(table.c.create_time_us, table.c.experiment_id)
        query = sa.select(table).order_by(*(column.desc() for column in order)).limit(limit)
        if before is not None:
            query = query.where(order < sa.tuple_(*before))
        return [_experiment(row) for row in await self._database.rows(query)]

    async def _change(self, experiment_id: str, change: Change) -> Experiment:
        def work(connection: sa.Connection) -> Experiment:
            # Two that start at once would both be given the same users; and a release that is pinned must
            # not be retired meanwhile.
            self._database.lock_plan(connection)
            columns = change(connection, _one(connection, experiment_id))
            if columns:
                connection.execute(
                    table.update().where(table.c.experiment_id == experiment_id).values(columns)
                )
            return _one(connection, experiment_id)

        return await self._database.transact(work)


def _check_parameters(own: Experiment, others: list[Experiment]) -> None:
    for other in others:
        shared = own.definition.parameters & other.definition.parameters
        if shared and other.definition.layer != own.definition.layer:
            raise FailedPreconditionError(
                f"experiment {other.id} sets {sorted(shared)[0]} in another layer ({other.definition.layer}):"
                " nobody could tell whose doing it was"
            )


def _check_releases(connection: sa.Connection, definition: ExperimentDefinition) -> None:
    for release_id in sorted(definition.release_ids):
        state = sa.select(releases.c.state).where(releases.c.release_id == release_id)
        if connection.execute(state).scalar_one_or_none() != ReleaseState.READY:
            raise FailedPreconditionError(f"release {release_id} cannot serve: it is not registered as ready")


def _check_rankers(connection: sa.Connection, definition: ExperimentDefinition) -> None:
    for release_id in sorted(definition.ranked_release_ids):
        newest = sa.select(activations.c.release_id).order_by(activations.c.seq.desc()).limit(1)
        wanted = release_id or connection.execute(newest).scalar_one_or_none()
        manifest = sa.select(releases.c.manifest).where(releases.c.release_id == wanted)
        if not (connection.execute(manifest).scalar_one_or_none() or {}).get("ranker"):
            raise FailedPreconditionError(f"release {wanted or 'none'} has no ranker to be switched on")


def _buckets(definition: ExperimentDefinition, others: list[Experiment]) -> list[tuple[int, int]]:
    layer = [other.buckets for other in others if other.definition.layer == definition.layer]
    found = free_buckets(layer, round(definition.traffic_percent / 100 * BUCKETS))
    if found is None:
        left = BUCKETS - sum(end - first for ranges in layer for first, end in ranges)
        raise FailedPreconditionError(
            f"layer {definition.layer} has {left / BUCKETS:.1%} of the users left, not"
            f" {definition.traffic_percent:g} %"
        )
    return found


def _weights(definition: ExperimentDefinition) -> list[float]:
    return [arm.weight for arm in definition.arms]


def _one(connection: sa.Connection, experiment_id: str) -> Experiment:
    found = _all(connection, table.c.experiment_id == experiment_id)
    if not found:
        raise NotFoundError(f"there is no experiment {experiment_id}")
    return found[0]


def _all(connection: sa.Connection, condition: sa.ColumnElement[bool]) -> list[Experiment]:
    query = sa.select(table).where(condition).order_by(table.c.experiment_id)
    return [_experiment(row) for row in connection.execute(query)]


def _experiment(row: Any) -> Experiment:
    return Experiment(
        definition=ExperimentDefinition.model_validate(row.definition),
        state=ExperimentState(row.state),
        create_time_us=row.create_time_us,
        start_time_us=row.start_time_us,
        stop_time_us=row.stop_time_us,
        weights_time_us=row.weights_time_us,
        review_time_us=row.review_time_us,
        buckets=tuple((first, end) for first, end in row.buckets),
        stopped_arms=tuple(StoppedArm(*each) for each in row.stopped_arms),
        winner=row.winner,
        conclusion=row.conclusion,
    )
