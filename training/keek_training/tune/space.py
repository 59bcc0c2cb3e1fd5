"""What is searched: fields of a training's configuration, and the values each may take."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, RootModel, ValidationError, model_validator

from keek_server.errors import SetupError
from keek_training.config import TrainConfig

if TYPE_CHECKING:
    from optuna import Trial

Value: TypeAlias = bool | int | float | str | None

_WITHIN: Final = 1e-6
"""Of a step, which is no exact number."""
_EXAMPLE: Final = "learning_rate: {low: 0.0005, high: 0.005, log: true}"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Span(_Part):
    """Numbers between two bounds, whole ones where both bounds are."""

    low: int | float
    high: int | float
    log: bool = False
    """Draw evenly by magnitude."""
    step: int | float | None = None

    @model_validator(mode="after")
    def _check(self) -> "Span":
        if not self.low < self.high or (self.log and (self.low <= 0 or self.step is not None)):
            raise ValueError("low must be below high; with log, above 0 and without a step")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether whole numbers are drawn."""
        return all(isinstance(own, int) for own in (self.low, self.high))

    def suggest(self, trial: "Trial", name: str) -> Value:
        """The trial's value."""
        if self.is_whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(name, low, high, step=step, log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def holds(self, value: Any) -> bool:
        """Whether a value can be drawn."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < _WITHIN


class Choices(_Part):
    """One of some values."""

    choices: tuple[Value, ...]

    def suggest(self, trial: "Trial", name: str) -> Value:
        """The trial's value."""
        chosen: Value = trial.suggest_categorical(name, list(self.choices))
        return chosen

    def holds(self, value: Any) -> bool:
        """Whether a value can be drawn."""
        return value in self.choices


class Space(RootModel[dict[str, Span | Choices]]):
    """By the name of the field; one of the towers is `towers.NAME`."""

    @classmethod
    def load(cls, path: Path, config: TrainConfig) -> "Space":
        """Reads a YAML file.

        Args:
            path: The file.
            config: What it is a space around.

        Raises:
            SetupError: When it cannot be read, is empty, or names what is no field or may not be.
        """
        try:
            content = yaml.safe_load(path.read_text("utf-8"))
            space = cls.model_validate(content or {})
        except (OSError, yaml.YAMLError) as error:
            raise SetupError(f"cannot read the search space {path}: {error}") from None
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
            raise SetupError(f"{path} is no search space, as {_EXAMPLE}: {'; '.join(lines)}") from None
        if not space.root:
            raise SetupError(f"{path} names no field, as {_EXAMPLE}")
        for name, part in space.root.items():
            ends = (part.low, part.high) if isinstance(part, Span) else part.choices
            for value in ends:
                with_values(config, {name: value}, str(path))
        return space

    def suggest(self, trial: "Trial") -> dict[str, Value]:
        """What a trial is to try."""
        return {name: part.suggest(trial, name) for name, part in self.root.items()}

    def values_of(self, config: TrainConfig) -> dict[str, Value] | None:
        """What a configuration has of it; None where it lies outside."""
        dumped = config.model_dump(mode="json")
        values = {name: _get(dumped, name) for name in self.root}
        return values if all(part.holds(values[name]) for name, part in self.root.items()) else None


def with_values(config: TrainConfig, values: Mapping[str, Value], name: str = "the space") -> TrainConfig:
    """The configuration with some fields changed.

    Raises:
        SetupError: When there is no such field, or its bounds are broken; `name` stands in the message.
    """
    dumped = config.model_dump(mode="json")
    for field, value in values.items():
        *path, last = field.split(".")
        place = _get(dumped, ".".join(path)) if path else dumped
        if not isinstance(place, dict):
            raise SetupError(f"{name}: {field} is no field of the configuration")
        place[last] = value
    return TrainConfig.of(dumped, name)


def _get(dumped: Mapping[str, Any], field: str) -> Any:
    place: Any = dumped
    for part in field.split("."):
        place = place.get(part) if isinstance(place, dict) else None
    return place
