"""Recall against latency, as text for a terminal or as a picture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Final

from keek_server.errors import SetupError

_WIDTH: Final = 68
_HEIGHT: Final = 16


@dataclass(frozen=True, slots=True)
class Point:
    """An index at one effort."""

    latency_ms: float
    recall: float
    is_tuned: bool


Curves = Mapping[str, Sequence[Point]]
"""Points by what they are of; at least one."""


def text_plot(curves: Curves) -> str:
    """Lines of text: recall upwards, the logarithm of the latency to the right, a letter a curve."""
    points = [point for curve in curves.values() for point in curve]
    lowest, highest = min(point.recall for point in points), max(point.recall for point in points)
    left, right = (math.log(extreme(point.latency_ms for point in points)) for extreme in (min, max))
    grid = [[" "] * _WIDTH for _ in range(_HEIGHT)]
    # What is tuned comes last, and is not drawn over.
    for tuned in (False, True):
        for letter, curve in zip(ascii_lowercase, curves.values(), strict=False):
            for point in curve:
                if point.is_tuned == tuned:
                    row = _place(point.recall, highest, lowest, _HEIGHT)
                    column = _place(math.log(point.latency_ms), left, right, _WIDTH)
                    grid[row][column] = letter.upper() if tuned else letter
    lines = ["recall"]
    for number, row_of in enumerate(grid):
        value = highest - (highest - lowest) * number / (_HEIGHT - 1)
        lines.append(f"{value:.4f} |{''.join(row_of)}".rstrip())
    ends = f"{math.exp(left):.4g}", f"{math.exp(right):.4g} ms"
    legend = ", ".join(f"{letter} {name}" for letter, name in zip(ascii_lowercase, curves, strict=False))
    lines += [
        f"       +{'-' * _WIDTH}",
        f"        {ends[0]}{ends[1].rjust(_WIDTH - len(ends[0]))}",
        f"{legend}; capitals: as tuned",
    ]
    return "\n".join(lines)


def _place(value: float, first: float, last: float, count: int) -> int:
    return 0 if first == last else round((value - first) / (last - first) * (count - 1))


def check_plot(path: Path) -> None:
    """Sees to it that `draw_plot` can do its work, before all that takes long.

    Raises:
        SetupError: When it cannot.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise SetupError(
            "a plot in a file needs matplotlib: install keek[training]; without --plot it is drawn as text"
        ) from error
    if not path.parent.is_dir():
        raise SetupError(f"there is no folder {path.parent} for the plot")


def draw_plot(curves: Curves, title: str, path: Path) -> None:
    """Writes a picture of the format that the suffix names.

    Raises:
        SetupError: When the file cannot be written.
    """
    # Of another extra, and for this command alone. No pyplot: its figures are the whole process's.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        ordered = sorted(curve, key=lambda point: point.latency_ms)
        (line,) = axes.plot(
            [point.latency_ms for point in ordered], [point.recall for point in ordered], "o-", label=name
        )
        tuned = [point for point in curve if point.is_tuned]
        axes.plot(
            [point.latency_ms for point in tuned],
            [point.recall for point in tuned],
            "*",
            color=line.get_color(),
            markersize=15,
        )
    axes.set(title=title, xlabel="ms a search, median (stars: as tuned)", ylabel="recall", xscale="log")
    axes.grid(alpha=0.25, which="both")
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise SetupError(f"the plot cannot be written: {error}") from error
