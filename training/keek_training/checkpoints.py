"""What a training needs to go on after it was stopped, written at the end of every epoch.

A file of plain arrays: everything that the model has learnt, the optimiser's state, the random states of
dropout and of the order of windows, the history, and the best weights so far. A training that goes on from it
makes the steps that it would have made, so that on the same machine the result is the same.
"""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from keek_server.errors import SetupError
from keek_training.runs import Run

if TYPE_CHECKING:
    from keek_training.trained import Trained

_META: Final = "meta"
_FORMAT: Final = 1

Arrays = list[npt.NDArray[Any]]


@dataclass(slots=True)
class Checkpoints:
    """The checkpoint of one run's training."""

    run: Run
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where the data comes from, as in the run's metrics."""
    resume: bool = False
    """Whether to go on from the one that is there."""
    saved_epochs: int = 0
    """How many this training has behind it that are safe."""

    def save(self, trained: "Trained", best: Arrays) -> None:
        """Writes it in the place of the one before, at once or not at all.

        Args:
            trained: After an epoch.
            best: The model's weights that were best so far, as `learnt` gives them.
        """
        meta = {
            "format": _FORMAT,
            "config": trained.config.model_dump(mode="json"),
            "origin": dict(self.origin),
            "data": _fingerprint(trained),
            "history": [asdict(epoch) for epoch in trained.history],
            "best_epoch": trained.best.epoch if trained.best else 0,
            "random": trained.random.bit_generator.state,
        }
        model = trained.model
        parts = {
            "model": _values(model.learnt),
            "optimizer": _values(model.optimizer.variables),
            "best": best,
        }
        arrays: dict[str, Any] = {_META: np.array(json.dumps(meta))}
        arrays |= {f"{name}/{i}": own for name, values in parts.items() for i, own in enumerate(values)}
        self.run.folder.mkdir(parents=True, exist_ok=True)
        with self.run.writing(self.run.checkpoint) as aside:
            np.savez(aside, **arrays)
        self.saved_epochs = len(trained.history)

    def restore(self, trained: "Trained") -> Arrays | None:
        """Brings a training to where the checkpoint was written; None where it begins anew.

        Args:
            trained: Compiled, not yet trained.

        Returns:
            The best weights until then.

        Raises:
            SetupError: When there is no checkpoint, or it is of another training.
        """
        if not self.resume:
            return None
        from keek_training.trained import Epoch

        meta = read_meta(self.run)
        if meta["config"] != trained.config.model_dump(mode="json"):
            raise SetupError(f"{self.run.checkpoint} is of a training with another configuration")
        if meta["data"] != _fingerprint(trained):
            raise SetupError(f"{self.run.checkpoint} is of other data than there is now: train anew")
        model = trained.model
        model.optimizer.build(model.trainable_variables)
        with np.load(self.run.checkpoint, allow_pickle=False) as stored:
            _assign(model.learnt, stored, "model")
            _assign(model.optimizer.variables, stored, "optimizer")
            best = [stored[f"best/{i}"] for i in range(len(model.learnt))]
        trained.history = [Epoch(**own) for own in meta["history"]]
        trained.best = trained.history[meta["best_epoch"] - 1]
        trained.random.bit_generator.state = meta["random"]
        self.saved_epochs = len(trained.history)
        return best

    def way_on(self) -> str:
        """What can be done after the training was stopped."""
        if not self.saved_epochs:
            return "no epoch was complete, so nothing of this training is kept"
        epochs = f"{self.saved_epochs} epoch{'s' if self.saved_epochs > 1 else ''}"
        return f"{epochs} are safe; keek-train train --resume --run {self.run.name} goes on"

    def remove(self) -> None:
        """After the run is complete."""
        self.run.checkpoint.unlink(missing_ok=True)


def read_meta(run: Run) -> dict[str, Any]:
    """`config`, `origin` and `history` of the checkpoint of a run.

    Raises:
        SetupError: When there is none, or it cannot be read.
    """
    try:
        with np.load(run.checkpoint, allow_pickle=False) as stored:
            meta: dict[str, Any] = json.loads(str(stored[_META]))
    except FileNotFoundError:
        raise SetupError(f"run {run.name!r} has no checkpoint to go on from") from None
    except (OSError, ValueError, KeyError) as error:
        raise SetupError(f"{run.checkpoint} is no checkpoint: {error}") from None
    if meta.get("format") != _FORMAT:
        raise SetupError(f"{run.checkpoint} is a checkpoint of another version of Keek: train anew")
    return meta


def _values(variables: Sequence[Any]) -> Arrays:
    from keek_training.backend import ops

    return [ops.convert_to_numpy(variable) for variable in variables]


def _assign(variables: Sequence[Any], stored: Mapping[str, npt.NDArray[Any]], part: str) -> None:
    for i, variable in enumerate(variables):
        variable.assign(stored[f"{part}/{i}"])


def _fingerprint(trained: "Trained") -> int:
    """A number that other data or another version's windows would hardly have."""
    sequences, windows = trained.sequences, trained.parts.training
    digest = zlib.crc32(json.dumps(trained.catalogue.video_ids.to_pylist()).encode())
    for array in (sequences.users, sequences.videos, sequences.kinds, sequences.times_us, windows.ends):
        digest = zlib.crc32(np.ascontiguousarray(array).data, digest)
    return digest
