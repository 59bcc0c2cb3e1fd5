"""Small charts as SVG, for a page that loads nothing from anywhere."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 22, 34
_COLOURS = ("#1f77b4", "#ff7f0e", "#d62728", "#2ca02c")
_GROUP_COLOURS = ("#1f77b4", "#d62728")
_TICKS = 4
_NOTHING = "<p>Nothing to show.</p>"

Points = Sequence[tuple[float, float]]


def histogram(groups: Mapping[str, Sequence[float]], *, unit: str, bin_count: int = 40) -> str:
    """How many values lie where; the bins grow by the same factor, for latencies have long tails.

    Args:
        groups: Values above zero by the name of their group; groups are stacked.
        unit: Of the values.
        bin_count: Bars.
    """
    values = [value for own in groups.values() for value in own]
    if not values:
        return _NOTHING
    low, high = math.log10(min(values)), math.log10(max(values))
    width = max(high - low, 1e-3) / bin_count
    stacks = []
    for own in groups.values():
        found = Counter(min(int((math.log10(value) - low) / width), bin_count - 1) for value in own)
        stacks.append([found[i] for i in range(bin_count)])
    most = max(map(sum, zip(*stacks, strict=True)))
    x_of, y_of = _Scale(low, low + width * bin_count, _LEFT, _WIDTH - _RIGHT), _y_scale(most)
    parts, below = _y_axis(most, y_of, "calls"), [0] * bin_count
    for number, (name, counts) in enumerate(zip(groups, stacks, strict=True)):
        for i, count in enumerate(counts):
            if count:
                start, end = 10 ** (low + i * width), 10 ** (low + (i + 1) * width)
                said = f"{start:.3g} to {end:.3g} {unit}: {count} {name}"
                parts.append(
                    f'<rect x="{x_of(low + i * width):.1f}" y="{y_of(below[i] + count):.1f}" '
                    f'width="{x_of(low + width) - x_of(low) - 1:.1f}" height="{y_of(0) - y_of(count):.1f}" '
                    f'fill="{_GROUP_COLOURS[number]}"><title>{escape(said)}</title></rect>'
                )
                below[i] += count
    ticks = [low + (high - low) * i / _TICKS for i in range(_TICKS + 1)]
    return _svg([*parts, *(_x_label(x_of(tick), f"{10**tick:.3g}") for tick in ticks), _x_title(unit)])


def lines(series: Mapping[str, Points], *, x_unit: str, y_unit: str) -> str:
    """One line a name, over what begins at zero."""
    points = [point for own in series.values() for point in own]
    if not points:
        return _NOTHING
    most_x, most_y = max(x for x, _ in points), max(y for _, y in points)
    x_of, y_of = _Scale(0, max(most_x, 1e-9), _LEFT, _WIDTH - _RIGHT), _y_scale(most_y)
    parts = _y_axis(most_y, y_of, y_unit)
    for number, (name, own) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in own)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2" fill="{colour}"/>' for x, y in own]
        parts.append(f'<text x="{_LEFT + 60 * number + 70}" y="14" fill="{colour}">{escape(name)}</text>')
    ticks = [most_x * i / _TICKS for i in range(_TICKS + 1)]
    return _svg([*parts, *(_x_label(x_of(tick), f"{tick:.3g}") for tick in ticks), _x_title(x_unit)])


class _Scale:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low, self._start = low, start
        self._factor = (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) * self._factor


def _y_scale(most: float) -> _Scale:
    return _Scale(0, max(most, 1e-9), _HEIGHT - _BOTTOM, _TOP)


def _y_axis(most: float, y_of: _Scale, unit: str) -> list[str]:
    parts = [f'<text x="4" y="14">{escape(unit)}</text>']
    for i in range(_TICKS + 1):
        value = most * i / _TICKS
        y = y_of(value)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    return parts


def _x_label(x: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 14}" text-anchor="middle">{text}</text>'


def _x_title(unit: str) -> str:
    return f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 4}" text-anchor="end">{escape(unit)}</text>'


def _svg(parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
