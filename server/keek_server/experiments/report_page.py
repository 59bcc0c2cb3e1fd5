"""An experiment's report as one HTML page that needs nothing else."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from keek_server.experiments.charts import Span, forest, ribbon
from keek_server.experiments.report_text import headline, number, percent
from keek_server.pages import page

Found = Mapping[str, Any]


def report_page(report: Found) -> str:
    """HTML of what `build_report` made."""
    body = [_facts(report), _arms(report)]
    for arm in report["arms"][1:]:
        body.append(_lifts(report, arm["name"]))
        body.append(_time_line(report, arm["name"]))
    body += [_measures(report), *map(_guardrails, report["guardrails"])]
    return page(f"experiment {report['experiment_id']}", "".join(body))


def _facts(report: Found) -> str:
    is_bad = report["sample_ratio"]["is_broken"] or any(
        arm["verdict"] == "stop" for arm in report["guardrails"]
    )
    lines = "<br>".join(map(escape, headline(report)))
    weights = ", ".join(f"{kind} {weight:g}" for kind, weight in report["weights"].items())
    facts = {
        "from": report["start_time"],
        "to": report["end_time"],
        "an interaction belongs to the last feed within": f"{report['window_hours']:g} hours",
        "weights of the north star": weights,
        "level": f"{report['alpha']:g}",
    }
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in facts.items()
    )
    return f'<p class="{"failed" if is_bad else "passed"}"><b>{lines}</b></p>\n<table>{rows}</table>\n'


def _arms(report: Found) -> str:
    return "<h2>Arms</h2>\n" + _table(
        ("arm", "weight", "users", "expected", "feeds", "slots", "stopped"),
        (
            (
                arm["name"],
                *(number(arm[name]) for name in ("weight", "user_count", "expected_user_count")),
                *(number(arm[name]) for name in ("feed_count", "slot_count")),
                arm["stop_time"] or "",
            )
            for arm in report["arms"]
        ),
    )


def _lifts(report: Found, arm: str) -> str:
    spans = []
    for measure in report["measures"]:
        (own,) = (row["difference"] for row in measure["arms"] if row["arm"] == arm)
        ends = own["relative"], own["sequential_relative_low"], own["sequential_relative_high"]
        if None not in ends:
            spans.append(Span(measure["title"], *ends))
    if not spans:
        return f"<p>Nothing can be said of {escape(arm)} yet.</p>\n"
    return forest(
        f"{arm} against {report['arms'][0]['name']}: lifts that hold however often one looks", spans
    )


def _time_line(report: Found, arm: str) -> str:
    spans = [
        Span(_minute(own["time"]), own["relative"], own["relative_low"], own["relative_high"])
        for own in report["time_line"]
        if own["arm"] == arm and None not in (own["relative"], own["relative_low"])
    ]
    return ribbon(f"{arm}: the lift of the north star as time went on", spans) if spans else ""


def _minute(time: str) -> str:
    """Of a time as RFC 3339 has it."""
    return time[: len("2026-01-31T23:59")].replace("T", " ")


def _measures(report: Found) -> str:
    return "<h2>Measures</h2>\n" + _table(
        (
            "measure",
            "arm",
            "value",
            "lift",
            "at every look",
            "p at every look",
            "at one look",
            "p at one look",
            "p of all arms (Holm)",
            "variance less by CUPED",
        ),
        (_measure_row(measure, row) for measure in report["measures"] for row in measure["arms"]),
    )


def _measure_row(measure: Found, row: Found) -> Sequence[str]:
    cells = [measure["title"], row["arm"], number(row["value"])]
    own = row.get("difference")
    if own is None:
        return [*cells, *[""] * 7]
    return [
        *cells,
        percent(own["relative"]) + (" *" if own["is_significant"] else ""),
        f"{percent(own['sequential_relative_low'])} … {percent(own['sequential_relative_high'])}",
        number(own["sequential_p_value"]),
        f"{percent(own['relative_low'])} … {percent(own['relative_high'])}",
        number(own["p_value"]),
        number(own["p_value_holm"]),
        percent(row["variance_reduction"]),
    ]


def _guardrails(arm: Found) -> str:
    return f"<h2>Guardrails of {escape(arm['arm'])}: {escape(arm['verdict'])}</h2>\n" + _table(
        ("guardrail", "verdict", "what was measured"),
        ((own["name"], own["verdict"], own["reason"]) for own in arm["guardrails"]),
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>\n"
