"""Search spaces as files: what they may name, and what of them a configuration has."""

from pathlib import Path

import pytest

from keek_server.errors import SetupError
from keek_training.config import TrainConfig
from keek_training.tune.space import Space, with_values

CONFIGS = Path(__file__).parent.parent.parent / "training" / "configs"


def _space(folder: Path, text: str) -> Space:
    file = folder / "space.yaml"
    file.write_text(text)
    return Space.load(file, TrainConfig())


def test_fields_change_wherever_they_stand() -> None:
    config = with_values(TrainConfig(), {"learning_rate": 0.01, "towers.blocks": 3})
    assert (config.learning_rate, config.towers.blocks) == (0.01, 3)
    assert config.towers.heads == TrainConfig().towers.heads


def test_a_space_says_what_a_configuration_has_of_it(tmp_path: Path) -> None:
    space = _space(
        tmp_path,
        "learning_rate: {low: 0.0005, high: 0.005, log: true}\n"
        "towers.history_length: {low: 20, high: 50, step: 10}\n"
        "jit: {choices: [true, false]}\n",
    )
    values = space.values_of(TrainConfig())
    assert values == {"learning_rate": 2e-3, "towers.history_length": 50, "jit": False}
    assert space.values_of(TrainConfig(learning_rate=0.1)) is None
    assert space.values_of(with_values(TrainConfig(), {"towers.history_length": 25})) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no field, as learning_rate: {low"),
        ("learning_rat: {choices: [1]}", "learning_rat: Extra inputs are not permitted"),
        ("towers.width.x: {choices: [1]}", "towers.width.x is no field of the configuration"),
        ("epochs: {low: -1, high: 3}", "epochs: Input should be greater than or equal to 0"),
        ("epochs: {low: 3, high: 3}", "low must be below high"),
        ("learning_rate: {low: 0.0, high: 0.1, log: true}", "with log, above 0"),
        ("epochs: 3", "is no search space"),
        ("[", "cannot read the search space"),
    ],
)
def test_what_cannot_be_searched_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SetupError, match=message.replace("[", r"\[")):
        _space(tmp_path, text)


@pytest.mark.parametrize("file", sorted((CONFIGS / "spaces").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_committed_spaces_hold_the_defaults(file: Path) -> None:
    config = TrainConfig()
    assert Space.load(file, config).values_of(config) is not None


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_committed_configurations_can_be_read(file: Path) -> None:
    assert TrainConfig.load(file) != TrainConfig()
