"""Learning curves, as a PNG beside the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt


def draw_learning_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss, and the validation's quality beside it, by epoch; nothing without a pass.

    Args:
        history: Per epoch `epoch`, `loss` and `validation`, which maps names of metrics to values.
        path: Where the PNG goes.
    """
    epochs = [entry["epoch"] for entry in history]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(epochs, [entry["loss"] for entry in history], marker="o")
    left.set(title="training loss", xlabel="epoch", ylabel="cross entropy")
    measured = history[0]["validation"] if history else {}
    for name in measured:
        right.plot(epochs, [entry["validation"][name] for entry in history], marker="o", label=name)
    right.set(title="validation: all videos ranked, seen excluded", xlabel="epoch")
    if measured:
        right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
