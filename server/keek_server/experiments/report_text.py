"""An experiment's report as tables for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

Found = Mapping[str, Any]


def report_text(report: Found) -> str:
    """Lines of text of what `build_report` made."""
    parts = [
        f"experiment {report['experiment_id']}: {report['start_time']} to {report['end_time']}",
        *headline(report),
        "",
        *aligned(
            ("ARM", "WEIGHT", "USERS", "EXPECTED", "FEEDS", "SLOTS"),
            [
                (
                    arm["name"] + (" (stopped)" if arm["stop_time"] else ""),
                    *(number(arm[name]) for name in ("weight", "user_count", "expected_user_count")),
                    *(number(arm[name]) for name in ("feed_count", "slot_count")),
                )
                for arm in report["arms"]
            ],
        ),
        "",
        *aligned(
            ("MEASURE", "ARM", "VALUE", "LIFT", "LOW", "HIGH", "P", "SEEN ONCE: LOW", "HIGH", "P"),
            [_row(measure, row) for measure in report["measures"] for row in measure["arms"]],
        ),
        "",
        f"* significant at {report['alpha']:g} however often it was looked at.",
        "LOW, HIGH and P hold at every look, those on the right at one.",
    ]
    parts += [
        f"guardrails of {arm['arm']}: {arm['verdict']}: {arm['reason']}" for arm in report["guardrails"]
    ]
    return "\n".join(parts) + "\n"


def headline(report: Found) -> list[str]:
    """What has to be known first, in sentences."""
    ratio, lines = report["sample_ratio"], []
    if ratio["is_broken"]:
        lines.append(
            f"THE SAMPLE RATIO IS BROKEN (p = {number(ratio['p_value'])}): users are lost or moved somewhere,"
            " trust no figure below"
        )
    else:
        lines.append(f"the sample ratio is in order (p = {number(ratio['p_value'])})")
    if report["since_time"] != report["start_time"]:
        lines.append(f"weights were changed: feeds since {report['since_time']} count")
    if report["moved_user_count"]:
        lines.append(f"{report['moved_user_count']} users saw more than one arm; the first one counts")
    lines += [
        f"{arm['arm']} HAS TO STOP: {arm['reason']}"
        for arm in report["guardrails"]
        if arm["verdict"] == "stop"
    ]
    return lines


def number(value: float | None) -> str:
    """For people; empty when not known."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(value: float | None) -> str:
    """A share as percent, with its sign; empty when not known."""
    return "" if value is None else f"{value:+.2%}"


def _row(measure: Found, row: Found) -> tuple[str, ...]:
    own = row.get("difference")
    cells = (measure["name"], row["arm"], number(row["value"]))
    if own is None:
        return (*cells, *[""] * 7)
    return (
        *cells,
        percent(own["relative"]) + (" *" if own["is_significant"] else ""),
        *(percent(own[name]) for name in ("sequential_relative_low", "sequential_relative_high")),
        number(own["sequential_p_value"]),
        *(percent(own[name]) for name in ("relative_low", "relative_high")),
        number(own["p_value"]),
    )


def aligned(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table, each column as wide as its widest cell."""
    lines = [header, *rows]
    widths = [max(len(line[place]) for line in lines) for place in range(len(header))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
