"""The plots of a release's report, as PNGs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from keek_server.releases.manifest import GateResult
from keek_training.gates.evidence import Evidence, FloatArray
from keek_training.gates.verdict import number
from keek_training.pages import png

_PASSED, _FAILED = "#2a7f4f", "#c0392b"
_NEW, _LIVE = "#2563a8", "#9aa5b1"
_BINS = 40
_SUBJECT = 40
_SMALLEST = 1e-6


def plots(results: Sequence[GateResult], evidence: Evidence) -> dict[str, bytes]:
    """PNGs by title; what was not measured has none."""
    drawn: dict[str, bytes] = {}
    if barred := [result for result in results if result.value is not None and result.bound]:
        height = 0.9 + 0.3 * len(barred)
        drawn["values over their bounds"] = png(lambda axes: _bars(axes, barred), height)
    norms = {"videos": evidence.video_norms, "sampled users": evidence.user_norms}
    if shown := {name: own[np.isfinite(own)] for name, own in norms.items() if np.isfinite(own).any()}:
        drawn["L2 norms of vectors"] = png(lambda axes: _histogram(axes, shown, "L2 norm"))
    if len(evidence.overlaps):
        drawn["share of the live feed that a user gets again"] = png(
            lambda axes: _histogram(axes, {"users": evidence.overlaps}, "share", limits=(0, 1))
        )
    if len(evidence.ranks):
        drawn["held-out videos found among the first k"] = png(lambda axes: _recall(axes, evidence))
    if evidence.latencies_ms:
        drawn["latency in Triton, one row a call"] = png(lambda axes: _boxes(axes, evidence.latencies_ms))
    return drawn


def _bars(axes: Axes, results: Sequence[GateResult]) -> None:
    """On a logarithmic axis: to the right of 1 is above the bound."""
    shares = [max(_SMALLEST, (result.value or 0.0) / result.bound) for result in results]
    places = np.arange(len(results))[::-1]
    lengths = [np.log10(share) for share in shares]
    axes.barh(places, lengths, color=[_PASSED if result.passed else _FAILED for result in results])
    axes.set_yticks(places, [_label(result) for result in results])
    ticks = np.arange(np.floor(min(lengths, default=0)), np.ceil(max(lengths, default=0)) + 1)
    axes.set_xticks(ticks, [f"{10.0**tick:g}" for tick in ticks])
    axes.axvline(0, color="black", linewidth=1)
    axes.set_xlabel("value / bound")


def _label(result: GateResult) -> str:
    subject, found, _ = result.detail.partition(":")
    name = f"{result.name} ({subject})" if found and len(subject) <= _SUBJECT else result.name
    return f"{name}  {result.comparison} {number(result.bound)}"


def _histogram(
    axes: Axes,
    arrays: dict[str, FloatArray],
    label: str,
    limits: tuple[float, float] | None = None,
) -> None:
    for name, values in arrays.items():
        span = limits or _span(values)
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins=_BINS, range=span, weights=weights, alpha=0.6, label=f"{name} ({len(values)})")
    axes.set(xlabel=label, ylabel="share")
    axes.legend()


def _span(values: FloatArray) -> tuple[float, float]:
    """Vectors that are all normalised differ by rounding alone, which is not worth a picture."""
    low, high = float(values.min()), float(values.max())
    margin = max(0.05 * (high - low), 0.05 * abs(high), 1e-6)
    return low - margin, high + margin


def _recall(axes: Axes, evidence: Evidence) -> None:
    for name, color, own in (("new", _NEW, evidence.ranks), ("live", _LIVE, evidence.live_ranks)):
        if len(own):
            axes.step(
                np.sort(own) + 1, (np.arange(len(own)) + 1) / len(own), where="post", color=color, label=name
            )
    axes.set(xlabel="k", ylabel="recall@k", xscale="log", ylim=(0, 1))
    axes.legend()


def _boxes(axes: Axes, times: dict[str, FloatArray]) -> None:
    axes.boxplot(list(times.values()), orientation="horizontal", showfliers=False)
    axes.set_yticks(range(1, len(times) + 1), list(times))
    axes.set_xlabel("milliseconds")
    axes.set_xlim(left=0)
