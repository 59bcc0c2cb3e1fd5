"""The report of a release's gates: as text, and as one HTML page that needs nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from keek_server.pages import page
from keek_server.releases.manifest import GateResult
from keek_training.gates.evidence import Evidence
from keek_training.gates.report_plots import plots
from keek_training.gates.verdict import describe, failures, number
from keek_training.pages import figure

TEXT_FILE, HTML_FILE = "report.txt", "report.html"


@dataclass(frozen=True, slots=True)
class _Report:
    release_id: str
    source: str
    results: Sequence[GateResult]
    live_id: str | None
    forced_reason: str

    @property
    def verdict(self) -> str:
        refused = failures(self.results)
        if not refused:
            return f"passed all {len(self.results)} gates"
        names = ", ".join(dict.fromkeys(result.name for result in refused))
        if self.forced_reason:
            return f"published by force although refused by {names}"
        return f"refused by {names}"

    @property
    def facts(self) -> dict[str, str]:
        facts = {"source": self.source, "compared with": self.live_id or "nothing: no live release"}
        if self.forced_reason:
            facts["forced because"] = self.forced_reason
        return facts


def write_report(
    folder: Path,
    release_id: str,
    source: str,
    results: Sequence[GateResult],
    live_id: str | None,
    forced_reason: str = "",
    evidence: Evidence | None = None,
) -> Path:
    """Writes report.txt and report.html.

    Args:
        folder: Where to; it exists.
        release_id: Of the release, or what it would have been called.
        source: What was published: `TowerSource.name`.
        results: Of all gates that were measured.
        live_id: The release that it was compared with.
        forced_reason: Why it was published although a gate refused it.
        evidence: What `measure` filled; without, there are the bars alone.

    Returns:
        The HTML page's path.
    """
    report = _Report(release_id, source, results, live_id, forced_reason)
    (folder / TEXT_FILE).write_text(_text(report), "utf-8")
    path = folder / HTML_FILE
    path.write_text(_html(report, plots(results, evidence or Evidence())), "utf-8")
    return path


def _text(report: _Report) -> str:
    lines = [f"release {report.release_id}: {report.verdict}"]
    lines += [f"  {name}: {value}" for name, value in report.facts.items()]
    lines += ["", *(f"{_word(result):8}{describe(result)}" for result in report.results)]
    # Whatever a file calls its tensors, a line stays one.
    return "".join(f"{' '.join(line.splitlines())}\n" for line in lines)


def _word(result: GateResult) -> str:
    if not result.passed:
        return "REFUSED"
    return "skipped" if result.value is None else "passed"


def _html(report: _Report, images: dict[str, bytes]) -> str:
    title = f"release {report.release_id}"
    state = "failed" if failures(report.results) else "passed"
    facts = "".join(f"<tr><th>{escape(n)}</th><td>{escape(v)}</td></tr>" for n, v in report.facts.items())
    figures = "".join(figure(name, image) for name, image in images.items())
    return page(
        title,
        f'<p class="{state}"><b>{escape(report.verdict)}</b></p>\n'
        f"<table>{facts}</table>\n<h2>Gates</h2>\n"
        "<table><tr><th>gate</th><th>value</th><th>asked for</th><th></th><th>what was measured</th></tr>\n"
        f"{''.join(map(_row, report.results))}</table>\n{figures}",
    )


def _row(result: GateResult) -> str:
    value = "" if result.value is None else number(result.value)
    state = "passed" if result.passed else "failed"
    return (
        f'<tr class="{state}"><td>{escape(result.name)}</td><td class="number">{value}</td>'
        f'<td class="number">{escape(result.comparison)} {number(result.bound)}</td>'
        f'<td><b>{_word(result)}</b></td><td class="detail">{escape(result.detail)}</td></tr>\n'
    )
