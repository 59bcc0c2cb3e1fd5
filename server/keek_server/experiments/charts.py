"""Plots as inline SVG: the server draws a few, and needs no library for them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_WIDTH: Final = 760
_LEFT: Final = 260
_ROW: Final = 26
_HEIGHT: Final = 220
_GOOD, _BAD, _OPEN, _BAND = "#2a7f4f", "#c0392b", "#5b6b7d", "#2563a8"
_TICKS: Final = 6
"""At most about so many beside an axis."""


@dataclass(frozen=True, slots=True)
class Span:
    """A value and its interval."""

    label: str
    value: float
    low: float
    high: float

    @property
    def color(self) -> str:
        """Green where the whole interval is above 0, red where it is below."""
        return _GOOD if self.low > 0.0 else _BAD if self.high < 0.0 else _OPEN


def forest(title: str, spans: Sequence[Span]) -> str:
    """One row a span, all on one axis in percent, with a line at 0; at least one."""
    axis = _Axis.over(spans, _LEFT, _WIDTH - 30)
    bottom = _ROW * len(spans) + 10
    parts = []
    for tick in axis.ticks:
        x = axis.at(tick)
        parts += [_line(x, 4, x, bottom, _grid(tick)), _text(x, bottom + 16, "middle", _percent(tick))]
    for row, span in enumerate(spans):
        y = _ROW * row + 18
        parts += [
            _text(_LEFT - 12, y + 4, "end", span.label),
            _line(axis.at(span.low), y, axis.at(span.high), y, f'stroke="{span.color}" stroke-width="3"'),
            f'<circle cx="{axis.at(span.value):.1f}" cy="{y}" r="4.5" fill="{span.color}"/>',
        ]
    return _figure(title, parts, bottom + 24)


def ribbon(title: str, spans: Sequence[Span]) -> str:
    """Spans from left to right as a line within a band, upwards in percent; the first and last label below.
    At least one."""
    axis = _Axis.over(spans, _HEIGHT, 14)
    left, right = 70.0, _WIDTH - 30.0
    step = (right - left) / max(1, len(spans) - 1)
    parts = []
    for tick in axis.ticks:
        y = axis.at(tick)
        parts += [_line(left, y, right, y, _grid(tick)), _text(left - 6, y + 4, "end", _percent(tick))]
    low, middle, high = (
        [f"{left + step * place:.1f},{axis.at(getattr(span, name)):.1f}" for place, span in enumerate(spans)]
        for name in ("low", "value", "high")
    )
    parts += [
        f'<polygon points="{" ".join(high + low[::-1])}" fill="{_BAND}" fill-opacity="0.18"/>',
        f'<polyline points="{" ".join(middle)}" fill="none" stroke="{_BAND}" stroke-width="2"/>',
        _text(left, _HEIGHT + 20, "start", spans[0].label),
        _text(right, _HEIGHT + 20, "end", spans[-1].label),
    ]
    return _figure(title, parts, _HEIGHT + 30)


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    first: float
    last: float

    @classmethod
    def over(cls, spans: Sequence[Span], first: float, last: float) -> "_Axis":
        low = min(0.0, *(span.low for span in spans))
        high = max(0.0, *(span.high for span in spans))
        margin = 0.05 * (high - low) or 0.01
        return cls(low - margin, high + margin, first, last)

    def at(self, value: float) -> float:
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)

    @property
    def ticks(self) -> list[float]:
        """Multiples of a round step, among them 0."""
        step = _round_step((self.high - self.low) / _TICKS)
        return [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5 and 5 times a power of ten that is not below this."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 2.5, 5, 10) if power * digit >= least)


def _percent(tick: float) -> str:
    """What stands beside a tick, to three digits."""
    return f"{tick * 100:+.3g} %" if tick else "0 %"


def _grid(tick: float) -> str:
    return 'stroke="#d9dee5"' if tick else 'stroke="#1c2430" stroke-dasharray="4 3"'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def _text(x: float, y: float, anchor: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>' if text else ""


def _figure(title: str, parts: Sequence[str], height: float) -> str:
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg role="img" viewBox="0 0 {_WIDTH} {height}" width="100%" font-size="12" fill="#1c2430">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg></figure>\n"
    )
