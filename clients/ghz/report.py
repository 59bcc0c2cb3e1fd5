"""`report.py FOLDER`: ghz's JSON reports and the server's metrics as one page, FOLDER/report.html.

It loads nothing from anywhere: charts are in it as SVG.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from charts import histogram, lines
from metrics import counted, timed
from summary import errors, read_reports

BEFORE, AFTER = "metrics_before.txt", "metrics_after.txt"
_NS_PER_MS = 1e6
_PERCENTAGES = (50, 95, 99)
_PIECES = 20
"""Pieces of a run that percentiles are shown of."""
_FAILED = "keek_feed_failures_total"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; }
td, th { padding: .2em .8em; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child { text-align: left; } .bad { color: #b00; }
.charts { display: flex; flex-wrap: wrap; gap: 1em; } .charts figure { margin: 0; flex: 1 1 480px; }
svg text { font-size: 11px; }
"""


class Call(NamedTuple):
    """One call."""

    start_s: float
    """Since the first call of its run."""
    latency_ms: float
    is_ok: bool


def calls_of(report: dict[str, Any]) -> list[Call]:
    """The calls of a run by their start: ghz writes down when each ended."""
    calls = []
    for each in report["details"] or ():
        end_s = datetime.fromisoformat(_microseconds(each["timestamp"])).timestamp()
        latency_ms = each["latency"] / _NS_PER_MS
        calls.append(Call(end_s - latency_ms / 1000, latency_ms, each["status"] == "OK"))
    first_s = min((call.start_s for call in calls), default=0.0)
    return sorted(call._replace(start_s=call.start_s - first_s) for call in calls)


def percentile(values: Sequence[float], percentage: float) -> float:
    """The nearest rank, as ghz has it."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percentage / 100), len(ordered) - 1)]


def page(reports: Sequence[dict[str, Any]], before: str | None, after: str | None) -> str:
    """The whole page.

    Args:
        reports: Of the runs.
        before: What the server told Prometheus before the runs; None when it tells nothing.
        after: The same after them.
    """
    found = [line for report in reports for line in errors(report)]
    parts = [
        "<h1>Load test</h1>",
        _list(found) if found else "<p>Every call succeeded.</p>",
        _table(_HEAD, map(_figures, reports)),
        *map(_run, reports),
        "<h2>What the server says</h2>",
        _server(before, after),
    ]
    head = f'<meta charset="utf-8"><title>Load test</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en">{head}{"".join(parts)}</html>\n'


_HEAD = ("run", "calls", "OK", "calls/s", *(f"p{percentage} ms" for percentage in _PERCENTAGES), "max ms")


def _figures(report: dict[str, Any]) -> list[str]:
    calls = calls_of(report)
    # Failed ones are among them: without those that came too late, the tail would look good.
    times_ms = [call.latency_ms for call in calls]
    shown = [*(percentile(times_ms, each) for each in _PERCENTAGES), max(times_ms)] if times_ms else []
    figures = [f"{value:.2f}" for value in shown] or ["-"] * (len(_PERCENTAGES) + 1)
    succeeded = sum(call.is_ok for call in calls)
    return [report["name"], str(report["count"]), str(succeeded), f"{report['rps']:.0f}", *figures]


def _run(report: dict[str, Any]) -> str:
    calls = calls_of(report)
    options = report["options"]
    how = (
        f"{options['rps']} calls a second, whether or not it keeps up"
        if options.get("async")
        else f"{options['concurrency']} callers, each waiting for its answer"
    )
    groups = {
        "answered": [call.latency_ms for call in calls if call.is_ok],
        "failed": [call.latency_ms for call in calls if not call.is_ok],
    }
    return (
        f"<h2>{escape(report['name'])}</h2><p>{escape(options['call'])}: {how}; "
        f"{options['connections']} connections.</p><div class=charts>"
        f"<figure><figcaption>Latencies; failed calls in red</figcaption>"
        f"{histogram(groups, unit='ms')}</figure>"
        f"<figure><figcaption>Percentiles over time, by when calls began</figcaption>"
        f"{lines(over_time(calls), x_unit='s', y_unit='ms')}</figure></div>"
    )


def over_time(calls: Sequence[Call]) -> dict[str, list[tuple[float, float]]]:
    """Points of each percentile: the middle of a piece of the run in seconds, and milliseconds."""
    if not calls:
        return {}
    piece_s = max(calls[-1].start_s, 1e-3) / _PIECES
    pieces: dict[int, list[Call]] = defaultdict(list)
    for call in calls:
        pieces[min(int(call.start_s / piece_s), _PIECES - 1)].append(call)
    series: dict[str, list[tuple[float, float]]] = {f"p{percentage}": [] for percentage in _PERCENTAGES}
    for number, own in sorted(pieces.items()):
        times_ms = [call.latency_ms for call in own]
        for percentage in _PERCENTAGES:
            series[f"p{percentage}"].append(((number + 0.5) * piece_s, percentile(times_ms, percentage)))
    return series


def _server(before: str | None, after: str | None) -> str:
    if before is None or after is None:
        return "<p>Nothing: it was started without KEEK_METRICS_LISTEN, or that was not given here.</p>"
    times = [
        [
            name,
            str(each.count),
            f"{each.mean * 1000:.2f}",
            *(f"{each.at_most(p / 100) * 1000:g}" for p in _PERCENTAGES),
        ]
        for name, each in sorted(timed(before, after).items())
        if "_seconds" in name
    ]
    grown = counted(before, after)
    failed = sum(change for name, change in grown.items() if name.startswith(_FAILED))
    warning = (
        [f"{failed:g} stages of feeds failed open: calls were answered by poorer feeds"] if failed else []
    )
    counts = [[name, f"{change:g}"] for name, change in sorted(grown.items())]
    head = ("times", "count", "mean ms", *(f"p{percentage} at most, ms" for percentage in _PERCENTAGES))
    return _list(warning) + _table(head, times) + "<br>" + _table(("counters", "grew by"), counts)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines_ = [("th", head), *(("td", row) for row in rows)]
    body = "".join(
        f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in row)}</tr>" for tag, row in lines_
    )
    return f"<table>{body}</table>"


def _list(found: Iterable[str]) -> str:
    return f'<ul class="bad">{"".join(f"<li>{escape(line)}</li>" for line in found)}</ul>'


def _microseconds(time: str) -> str:
    """A time with at most six digits behind the point, which is what Python reads."""
    whole, point, rest = time.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return f"{whole}{point}{digits[:6].ljust(6, '0')}{rest[len(digits) :]}" if point else time


def main(folder: Path) -> int:
    """Writes the page; 1 when there is no report."""
    reports = read_reports(folder)
    if not reports:
        print(f"{folder} holds no report of ghz", file=sys.stderr)
        return 1
    own = [folder / name for name in (BEFORE, AFTER)]
    before, after = (path.read_text("utf-8") if path.exists() else None for path in own)
    output = folder / "report.html"
    output.write_text(page(reports, before, after), "utf-8")
    print(f"report: {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
