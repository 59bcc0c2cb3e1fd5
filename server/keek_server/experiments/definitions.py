"""What an experiment is, as it is stored: checked once, when it is made known."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

from keek_server.errors import FieldViolation, InvalidArgumentError

CONTROL: Final = 0
"""The place of the arm that the others are compared with."""
DEFAULT_LAYER: Final = "default"

_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"

Name: TypeAlias = Annotated[str, Field(pattern=_NAME, max_length=64)]
Share: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
Metric: TypeAlias = Literal[
    "north_star",
    "likes",
    "saves",
    "shares",
    "views",
    "like_rate",
    "view_rate",
    "watch_share",
    "watch_seconds",
    "view_share",
    "feeds",
]
"""Names of `measures.MEASURES`."""


class ExperimentState(IntEnum):
    """Where an experiment is in its life, numbered as in `keek.v1.ExperimentState`."""

    DRAFT = 1
    RUNNING = 2
    STOPPED = 3
    CONCLUDED = 4


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArmParameters(_Part):
    """What an arm makes feeds with; what is None stays as it is."""

    personalised_share: Share | None = None
    trending_slots: Annotated[int, Field(ge=0, le=100)] | None = None
    """Of each page, instead of a share."""
    per_owner_cap: Annotated[int, Field(ge=1, le=100)] | None = None
    exploration: Share | None = None
    video_exploration: Share | None = None
    ranker: StrictBool | None = None
    release_id: Annotated[str, Field(max_length=64)] = ""

    @model_validator(mode="after")
    def _one_split(self) -> "ArmParameters":
        if self.personalised_share is not None and self.trending_slots is not None:
            raise ValueError("personalised_share and trending_slots exclude each other")
        return self

    @property
    def named(self) -> frozenset[str]:
        """The parameters that it sets; both ways to say the split are one."""
        names = {name for name in type(self).model_fields if getattr(self, name) not in (None, "")}
        if "trending_slots" in names:
            names = names - {"trending_slots"} | {"personalised_share"}
        return frozenset(names)


class Arm(_Part):
    """A variant."""

    name: Name
    weight: Annotated[float, Field(ge=0.0, le=1e6)] = 1.0
    parameters: ArmParameters = ArmParameters()


class Audience(_Part):
    """Who may be in it: users of whom every rule that is given is true."""

    user_id_prefixes: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    """That the request's filter asks for, in any case; the same for regions."""
    regions: tuple[str, ...] = ()


class Adaptation(_Part):
    """How the weights follow what is measured."""

    metric: Metric
    floor: Annotated[float, Field(ge=0.0, le=0.5)] = 0.0
    """The least share of users that every arm keeps."""


class Guardrails(_Part):
    """What stops an arm; 0 is no bound."""

    latency_ratio: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    empty_share: Share = 0.0


class ExperimentDefinition(_Part):
    """All that is decided about an experiment."""

    experiment_id: Name
    description: Annotated[str, Field(max_length=2048)] = ""
    layer: Name = DEFAULT_LAYER
    traffic_percent: Annotated[float, Field(gt=0.0, le=100.0)]
    arms: Annotated[tuple[Arm, ...], Field(min_length=2, max_length=20)]
    audience: Audience = Audience()
    overrides: dict[str, str] = {}
    """Arms by user."""
    adaptation: Adaptation | None = None
    guardrails: Guardrails = Guardrails()

    @model_validator(mode="after")
    def _fits_together(self) -> "ExperimentDefinition":
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError("two arms have the same name")
        if not sum(arm.weight for arm in self.arms):
            raise ValueError("no arm has a weight")
        if unknown := set(self.overrides.values()) - set(names):
            raise ValueError(f"overrides name {sorted(unknown)[0]!r}, which is no arm")
        if abs(self.traffic_percent * 10 - round(self.traffic_percent * 10)) > 1e-6:
            raise ValueError("traffic_percent has steps of 0.1")
        if self.adaptation is not None and self.adaptation.floor * len(self.arms) > 1:
            raise ValueError(f"a floor of {self.adaptation.floor:g} is too much for {len(self.arms)} arms")
        return self

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "ExperimentDefinition":
        """Checks what a caller gave.

        Raises:
            InvalidArgumentError: Names every field that does not fit, below `definition`.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InvalidArgumentError(
                [FieldViolation(_path(e["loc"]), _because(e["msg"])) for e in error.errors()]
            ) from None

    @property
    def parameters(self) -> frozenset[str]:
        """The parameters that any of its arms sets."""
        return frozenset().union(*(arm.parameters.named for arm in self.arms))

    @property
    def release_ids(self) -> frozenset[str]:
        """The releases that its arms pin."""
        return frozenset(arm.parameters.release_id for arm in self.arms) - {""}

    @property
    def ranked_release_ids(self) -> frozenset[str]:
        """The releases that its arms want ranked feeds of; empty stands for the active one."""
        return frozenset(arm.parameters.release_id for arm in self.arms if arm.parameters.ranker)

    def while_running(self) -> dict[str, Any]:
        """What must stay as it is while it runs."""
        free = {"description", "overrides", "adaptation", "guardrails"}
        kept = self.model_dump(mode="json", exclude=free)
        for arm in kept["arms"]:
            del arm["weight"]
        return kept

    def with_weights(self, weights: Mapping[str, float]) -> "ExperimentDefinition":
        """The same with other weights, by arm; arms that are not named keep theirs."""
        arms = tuple(
            arm.model_copy(update={"weight": weights.get(arm.name, arm.weight)}) for arm in self.arms
        )
        return self.model_copy(update={"arms": arms})


def _path(location: tuple[int | str, ...]) -> str:
    path = "definition"
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path


def _because(message: str) -> str:
    return message.removeprefix("Value error, ")
