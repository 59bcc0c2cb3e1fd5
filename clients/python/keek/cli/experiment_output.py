"""How experiments look."""

from collections.abc import Iterable, Iterator
from typing import Final

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from keek.cli.output import Table, printable
from keek.v1.experiment_service_pb2 import (
    Audience,
    Experiment,
    ExperimentDefinition,
    ExperimentState,
)


class ExperimentTable:
    """Experiments, one a row."""

    def __init__(self) -> None:
        # Wide enough for what later pages may bring.
        state, traffic = "STATE".ljust(len("concluded")), "TRAFFIC".ljust(len("99.9 %"))
        self._table: Final = Table("EXPERIMENT", state, "LAYER", traffic, "CREATED", "WINNER", "ARMS")

    def add(self, experiments: Iterable[Experiment]) -> None:
        """Prints experiments, with the share of its users that each arm gets."""
        self._table.add(
            (
                experiment.definition.experiment_id,
                _state(experiment.state),
                _layer(experiment.definition),
                _percent(experiment.definition.traffic_percent),
                _time(experiment.create_time),
                experiment.winner,
                ", ".join(f"{name} {share}" for name, share in _shares(experiment.definition)),
            )
            for experiment in experiments
        )


def print_experiment(experiment: Experiment) -> None:
    """One experiment, its arms, and who is put into which."""
    for name, value in _lines(experiment).items():
        print(f"{name:11} {printable(value)}".rstrip(), flush=True)
    print()
    definition = experiment.definition
    stopped = {arm.arm: f"stopped: {arm.reason}" for arm in experiment.stopped_arms}
    Table("ARM", "SHARE", "STATUS", "PARAMETERS").add(
        (arm.name, share, stopped.get(arm.name, ""), _fields(arm.parameters) or "(as it is)")
        for arm, (_, share) in zip(definition.arms, _shares(definition), strict=True)
    )
    if definition.overrides:
        print()
    Table("USER", "ARM").add((override.user_id, override.arm) for override in definition.overrides)


def _lines(experiment: Experiment) -> dict[str, str]:
    definition = experiment.definition
    lines = {
        "experiment": definition.experiment_id,
        "description": definition.description,
        "state": _state(experiment.state),
        "layer": _layer(definition),
        "traffic": _percent(definition.traffic_percent),
        "audience": _audience(definition.audience),
        "adaptation": _fields(definition.adaptation),
        "guardrails": _fields(definition.guardrails),
        "created": _time(experiment.create_time),
        "started": _time(experiment.start_time),
        "stopped": _time(experiment.stop_time),
        "winner": experiment.winner,
        "conclusion": experiment.conclusion,
    }
    return {name: value for name, value in lines.items() if value}


def _shares(definition: ExperimentDefinition) -> Iterator[tuple[str, str]]:
    """Each arm's name, and its share of the experiment's users."""
    total = sum(arm.weight for arm in definition.arms)
    for arm in definition.arms:
        yield arm.name, _percent(100.0 * arm.weight / total) if total else ""


def _fields(message: Message) -> str:
    """The fields that are set, as `personalised_share=0.5 per_owner_cap=2`."""
    values = ((field.name, value) for field, value in message.ListFields())
    return " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in values
    )


def _audience(audience: Audience) -> str:
    rules = {
        "user ids": [f"{prefix}*" for prefix in audience.user_id_prefixes],
        "languages": audience.languages,
        "regions": audience.regions,
    }
    return ", ".join(f"{name} {' '.join(values)}" for name, values in rules.items() if values) or "everyone"


def _state(state: ExperimentState.ValueType) -> str:
    if state not in ExperimentState.values():
        return str(state)
    return ExperimentState.Name(state).removeprefix("EXPERIMENT_STATE_").lower()


def _layer(definition: ExperimentDefinition) -> str:
    return definition.layer or "default"


def _percent(value: float) -> str:
    return f"{value:.4g} %"


def _time(time: Timestamp) -> str:
    """Empty where there is none; nothing of an experiment happened at the epoch."""
    return time.ToJsonString() if time.ByteSize() else ""
