"""Which user gets which arms: by salted hashes, so that nothing is looked up and everybody keeps their arm.

A layer shares all users out between its experiments, by buckets; another one draws anew, since its salt is
another (Tang et al., "Overlapping Experiment Infrastructure", 2010). Within an experiment a second hash, with
the experiment's own salt, chooses the arm.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

import xxhash

from keek_server.experiments.definitions import ArmParameters, Audience, ExperimentDefinition

BUCKETS: Final = 1000
"""Of a layer."""
_POINTS: Final = 2**32
_HOLDOUT: Final = "holdout"

Buckets = Sequence[tuple[int, int]]
"""Half-open ranges of a layer's buckets."""


_AS_USUAL: Final = ArmParameters()


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a user's feeds are made with."""

    arms: tuple[tuple[str, str], ...] = ()
    """Ids of experiments, and the arms in them."""
    parameters: ArmParameters = _AS_USUAL
    """Those of all arms together."""
    label: str = ""
    """`experiment/arm`, several separated by commas."""


NO_ARMS: Final = Assignment()
"""Of users whom no experiment takes."""


@dataclass(frozen=True, slots=True)
class Running:
    """A running experiment, as assignment needs it."""

    definition: ExperimentDefinition
    buckets: Buckets
    stopped_arms: frozenset[str] = frozenset()
    """Their users get the usual feeds."""


@dataclass(frozen=True, slots=True)
class _Experiment:
    id: str
    salt: int
    bounds: list[float]
    """The upper ends of the arms' parts of the hashes."""
    arms: list[str]
    audience: Audience
    stopped: frozenset[str]

    @classmethod
    def of(cls, running: Running) -> "_Experiment":
        definition = running.definition
        total = sum(arm.weight for arm in definition.arms)
        parts = accumulate(arm.weight / total * _POINTS for arm in definition.arms)
        return cls(
            definition.experiment_id,
            _salt(definition.experiment_id),
            list(parts)[:-1],
            [arm.name for arm in definition.arms],
            definition.audience,
            running.stopped_arms,
        )

    def arm_of(self, user: bytes) -> str:
        point = xxhash.xxh3_64_intdigest(user, self.salt) % _POINTS
        return self.arms[bisect_right(self.bounds, point)]


@dataclass(frozen=True, slots=True)
class _Layer:
    salt: int
    buckets: list[_Experiment | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """All running experiments, made ready: replaced as a whole."""

    layers: tuple[_Layer, ...] = ()
    overrides: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By user: arms by experiment."""
    holdout_points: float = 0.0
    """Users below this are in no experiment."""
    holdout_salt: int = 0
    release_ids: frozenset[str] = frozenset()
    """Those that arms pin."""
    parameters: Mapping[tuple[str, str], ArmParameters] = field(default_factory=dict)
    """By experiment and arm."""
    known: dict[tuple[tuple[str, str], ...], Assignment] = field(default_factory=dict)
    """Assignments that were made, by their arms: there are few."""

    @classmethod
    def of(cls, experiments: Iterable[Running], *, holdout: float = 0.0) -> "Plan":
        """
        Args:
            experiments: All that run; those of one layer have no bucket in common.
            holdout: Share of all users that no experiment takes.
        """
        layers: dict[str, _Layer] = {}
        overrides: dict[str, dict[str, str]] = {}
        parameters: dict[tuple[str, str], ArmParameters] = {}
        release_ids: set[str] = set()
        for running in experiments:
            definition = running.definition
            made = _Experiment.of(running)
            empty = _Layer(_salt(f"layer {definition.layer}"), [None] * BUCKETS)
            buckets = layers.setdefault(definition.layer, empty).buckets
            for first, end in running.buckets:
                buckets[first:end] = [made] * (end - first)
            for user_id, arm in definition.overrides.items():
                overrides.setdefault(user_id, {})[made.id] = arm
            for own in definition.arms:
                parameters[made.id, own.name] = own.parameters
            release_ids |= definition.release_ids
        return cls(
            tuple(layers.values()),
            overrides,
            holdout * _POINTS,
            _salt(_HOLDOUT),
            frozenset(release_ids),
            parameters,
        )


def assign(
    plan: Plan, user_id: str, languages: Sequence[str] = (), regions: Sequence[str] = ()
) -> Assignment:
    """The arms of a user, always the same while the experiments are.

    Args:
        plan: What runs.
        user_id: Whose feed it is.
        languages: That the request asks for, as regions: what audiences are told by.
    """
    if not plan.layers:
        return NO_ARMS
    forced = plan.overrides.get(user_id)
    arms = list(forced.items()) if forced else []
    user = user_id.encode()
    held = plan.holdout_points and xxhash.xxh3_64_intdigest(user, plan.holdout_salt) % _POINTS
    if not plan.holdout_points or held >= plan.holdout_points:
        for layer in plan.layers:
            experiment = layer.buckets[xxhash.xxh3_64_intdigest(user, layer.salt) % BUCKETS]
            if experiment is None or (forced and experiment.id in forced):
                continue
            if not _takes(experiment.audience, user_id, languages, regions):
                continue
            arm = experiment.arm_of(user)
            if arm not in experiment.stopped:
                arms.append((experiment.id, arm))
    if not arms:
        return NO_ARMS
    chosen = tuple(arms)
    made = plan.known.get(chosen)
    if made is None:
        made = plan.known[chosen] = _merged(plan, chosen)
    return made


def _takes(audience: Audience, user_id: str, languages: Sequence[str], regions: Sequence[str]) -> bool:
    if audience.user_id_prefixes and not user_id.startswith(audience.user_id_prefixes):
        return False
    if audience.languages and not _meet(audience.languages, languages):
        return False
    return not audience.regions or _meet(audience.regions, regions)


def _meet(wanted: Sequence[str], given: Sequence[str]) -> bool:
    return not {each.lower() for each in wanted}.isdisjoint(each.lower() for each in given)


def _merged(plan: Plan, arms: tuple[tuple[str, str], ...]) -> Assignment:
    """No two experiments that a user is in by chance set the same; of overrides the last one counts."""
    merged: dict[str, object] = {}
    for arm in arms:
        own = plan.parameters[arm].model_dump(exclude_defaults=True)
        # Both say the split: the later one takes the place of the other.
        if own.keys() & {"personalised_share", "trending_slots"}:
            merged.pop("personalised_share", None)
            merged.pop("trending_slots", None)
        merged |= own
    label = ",".join(f"{experiment_id}/{arm}" for experiment_id, arm in arms)
    return Assignment(arms, ArmParameters.model_validate(merged), label)


def free_buckets(taken: Iterable[Buckets], count: int) -> list[tuple[int, int]] | None:
    """So many buckets of a layer that nobody has, as ranges; None when there are fewer."""
    free = [True] * BUCKETS
    for own in taken:
        for first, end in own:
            free[first:end] = [False] * (end - first)
    chosen = [bucket for bucket, is_free in enumerate(free) if is_free][:count]
    if len(chosen) < count:
        return None
    ranges: list[tuple[int, int]] = []
    for bucket in chosen:
        if ranges and ranges[-1][1] == bucket:
            ranges[-1] = (ranges[-1][0], bucket + 1)
        else:
            ranges.append((bucket, bucket + 1))
    return ranges


def _salt(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode())
