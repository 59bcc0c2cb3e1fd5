"""`keek-train tune`: arguments, and what it prints and writes."""

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from keek_server.errors import SetupError
from keek_server.settings import Settings
from keek_training.datasets.commands import Subparsers

if TYPE_CHECKING:
    import optuna

    from keek_training.config import TrainConfig
    from keek_training.evaluation.splits import Split

_LAST: Final = 1 / 5
_DRAWN: Final = 1 / 3


def add_arguments(subparsers: Subparsers) -> None:
    """Adds the command, for `run_tune`."""
    tune = subparsers.add_parser("tune", help="search for a better configuration, by a part of the training")
    tune.add_argument(
        "--name", default="latest", help="of the search; one there is goes on (default: latest)"
    )
    tune.add_argument(
        "--data", metavar="SPEC|DIR", help="as for train: of a public data set the training part alone"
    )
    tune.add_argument("--config", type=Path, help="what the search is around (default: the defaults)")
    tune.add_argument(
        "--space", type=Path, required=True, metavar="FILE", help="YAML: the fields that are searched"
    )
    tune.add_argument("--trials", type=int, help="how many are made")
    tune.add_argument("--budget-s", type=float, metavar="SECONDS", help="how long the search may take")
    tune.add_argument("--seed", type=int, help="of all that is drawn (default: the configuration's)")


def run_tune(arguments: argparse.Namespace, settings: Settings) -> int:
    """Searches, prints all trials, and writes the best configuration.

    Raises:
        SetupError: When something given does not fit, Optuna is not installed, or no trial came to its end.
        UnavailableError: When the database is down or late.
    """
    from keek_training.config import TrainConfig
    from keek_training.tune.space import Space

    config = TrainConfig.load(arguments.config) if arguments.config else TrainConfig()
    if arguments.seed is not None:
        config = config.model_copy(update={"seed": arguments.seed})
    space = Space.load(arguments.space, config)
    folder = _folder(arguments, settings)
    try:
        from keek_training.tune.study import Budget, search, table
    except ImportError as error:
        raise SetupError(f"keek-train tune needs the extra keek[training] with Optuna ({error})") from error

    origin, split = _split(arguments.data, settings)
    folder.mkdir(parents=True, exist_ok=True)
    budget = Budget(arguments.trials, arguments.budget_s)
    study = search(split, config, space, folder / "study.db", facts={"data": origin}, budget=budget)
    print(table(study))
    best = folder / "best.yaml"
    best.write_text(_best(study, config, split.name), "utf-8")
    print(f"the best: {best}; keek-train train --config {best}")
    return 0


def _folder(arguments: argparse.Namespace, settings: Settings) -> Path:
    if arguments.trials is None and arguments.budget_s is None:
        raise SetupError("a search needs an end: --trials, --budget-s, or both")
    name: str = arguments.name
    if not name or name != Path(name).name:
        raise SetupError(f"{name!r} cannot name a search: it must be a plain folder name")
    return settings.data_dir / "studies" / name


def _split(spec: str | None, settings: Settings) -> tuple[dict[str, Any], "Split"]:
    """Where the data comes from, and a validation part of what is trained on.

    The part of a public data set is its protocol's, out of its training part: nothing is chosen by the
    targets that are reported. Of other data it is the newest fifth, or without times a video each of a third
    of the users.
    """
    from keek_training.datasets.registry import FORMATS
    from keek_training.evaluation.public import recognise
    from keek_training.evaluation.splits import drawn_out, last_part
    from keek_training.hourly.reading import LogData, read_all
    from keek_training.run_data import open_data

    if spec and spec.partition(":")[0] not in FORMATS and Path(spec).expanduser().is_dir():
        protocol = recognise(Path(spec).expanduser()).protocol()
        return {"folder": str(Path(spec).expanduser().resolve())}, protocol.tuning(protocol.split.training)
    data = LogData(*open_data(spec)) if spec else asyncio.run(read_all(settings))
    times_us = data.dataset.interactions["event_time_us"].to_numpy()
    if not len(times_us):
        raise SetupError(f"{data.dataset.name} holds no interaction to train on")
    splitter = drawn_out(_DRAWN) if times_us[0] == times_us[-1] else last_part(_LAST)
    return data.origin, splitter(data.dataset)


def _best(study: "optuna.Study", config: "TrainConfig", split: str) -> str:
    from optuna.trial import TrialState

    from keek_training.tune.space import with_values
    from keek_training.tune.study import BEST_EPOCH, JUDGED_BY

    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        raise SetupError("no trial came to its end: the budget is too small for one; the same search goes on")
    trial = study.best_trial
    chosen = with_values(config, trial.params | {"fit_epochs": trial.user_attrs[BEST_EPOCH]})
    content: str = yaml.safe_dump(chosen.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    head = f"# keek-train tune: trial {trial.number}, {JUDGED_BY} {trial.value:.4f} by the split {split!r}."
    return f"{head}\n{content}"
