"""Data sets by name: `open_dataset("kuairand:DIR")`."""

from collections.abc import Mapping
from pathlib import Path

from keek_server.errors import SetupError
from keek_training.datasets import kuairand, movielens, prototype, table, tiktok
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.synth import parse_config, synthesise

FORMATS = ("kuairand", "movielens", "tiktok", "prototype", "table", "synth")
_IN_PARTS = ("kuairand", "tiktok")


def open_dataset(spec: str, *, columns: Mapping[str, str] | None = None, part: str | None = None) -> Dataset:
    """Reads, or generates, the data set that `spec` names.

    Args:
        spec: `kuairand:DIR`, `movielens:DIR`, `tiktok:DIR`, `prototype:DIR`, `table:DIR`,
            `synth` or `synth:key=value,...`.
        columns: For `table`: from Keek's names of columns to the files' own.
        part: For `kuairand` and `tiktok`: `train`, which is the default, or `all`.

    Raises:
        SetupError: When no format has this name, the folder is missing or not of this
            format, or an option is not one of the format's.
    """
    name, _, argument = spec.partition(":")
    if name not in FORMATS:
        raise SetupError(f"no data set format {name!r}; a data set is FORMAT:PATH with {', '.join(FORMATS)}")
    if columns is not None and name != "table":
        raise SetupError(f"a column mapping is for table:PATH, not for {name}")
    if part is not None and name not in _IN_PARTS:
        raise SetupError(f"a part is for {' or '.join(f'{own}:PATH' for own in _IN_PARTS)}, not for {name}")
    if name == "synth":
        return synthesise(parse_config(argument))
    path = _folder(name, argument)
    match name:
        case "kuairand":
            return kuairand.read(path, part or "train")
        case "movielens":
            return movielens.read(path)
        case "tiktok":
            return tiktok.read(path, part or "train")
        case "prototype":
            return prototype.read(path)
        case _:
            return table.read(path, columns)


def _folder(name: str, argument: str) -> Path:
    if not argument:
        raise SetupError(f"{name} needs a folder: {name}:PATH")
    path = Path(argument).expanduser()
    if not path.is_dir():
        raise SetupError(f"{path} is no folder; {name}:PATH names the folder that holds the files")
    return path
