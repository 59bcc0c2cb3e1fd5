"""What a run was trained on, read again."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from keek_server.errors import SetupError
from keek_server.releases.release import clip_is_read
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.registry import FORMATS, open_dataset
from keek_training.datasets.store import load_dataset
from keek_training.evaluation.public import TRAINING, recognise
from keek_training.hourly.state import LogRange
from keek_training.runs import Run

DATA_SPEC: Final = "data_spec"
"""In a run's metrics: the data set that it was trained on, where that was not the log."""
LOG: Final = "log"
"""There as well: what of the log was read."""
FIT: Final = "fit"
"""In a run's metrics: what of a public data set's folder was fitted."""


def open_data(spec: str, fit: str | None = None) -> tuple[Dataset, dict[str, str]]:
    """The data set to train on, and what a run's metrics say of where it comes from.

    Args:
        spec: FORMAT:PATH as for an import, which is read whole; or the plain folder of a public data set.
        fit: What of such a folder; its training part by default.

    Raises:
        SetupError: When it cannot be read, or `fit` is given for what has no such parts.
    """
    folder = Path(spec).expanduser()
    if spec.partition(":")[0] in FORMATS or not folder.is_dir():
        if fit is not None:
            raise SetupError(f"--fit is for the plain folder of a public data set, not for {spec}")
        return open_dataset(spec), {DATA_SPEC: absolute_spec(spec)}
    fit = fit or TRAINING
    return recognise(folder).read(fit), {DATA_SPEC: str(folder.resolve()), FIT: fit}


def absolute_spec(spec: str) -> str:
    """The same data set, named from anywhere."""
    name, separator, argument = spec.partition(":")
    if not argument or name == "synth":
        return spec
    return f"{name}{separator}{Path(argument).expanduser().resolve()}"


def read_training_data(run: Run, spec: str | None, settings: Settings) -> Dataset:
    """The data set of a run.

    Args:
        run: A trained one.
        spec: Another place of its data set.
        settings: Name the database.

    Raises:
        SetupError: When the run is not trained, or does not say, or its data is not there any more.
        UnavailableError: When the database is down or late.
    """
    origin = run.read_metrics()
    if spec is not None:
        origin |= {DATA_SPEC: spec}
    if not {DATA_SPEC, LOG} & origin.keys():
        raise SetupError(f"run {run.name!r} does not say what it was trained on: name it by --data")
    return read_again(origin, settings)


def read_again(origin: Mapping[str, Any], settings: Settings) -> Dataset:
    """The data set that `origin` names, as a run's metrics do; of the log, everything up to the row that was
    read then.

    Raises:
        SetupError: When it is not there any more.
        UnavailableError: When the database is down or late.
    """
    spec = origin.get(DATA_SPEC)
    if spec is not None:
        return open_data(spec, origin.get(FIT) if Path(spec).expanduser().is_dir() else None)[0]
    log = LogRange.model_validate(origin[LOG])
    return asyncio.run(_read_log(log, origin.get("clip_model", ""), settings))


async def _read_log(log: LogRange, own_clip: str, settings: Settings) -> Dataset:
    async with open_database(settings) as database:
        return await load_dataset(
            database, lambda clip_model: clip_is_read(clip_model, own_clip), last_seq=log.last_seq
        )
