"""The report of a release's gates: as text, and as one HTML page that needs nothing else."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from keek_server.releases.manifest import GateResult
from keek_training.gates.evidence import Evidence
from keek_training.gates.report_plots import plots
from keek_training.gates.verdict import describe, failures, number

TEXT_FILE, HTML_FILE = "report.txt", "report.html"

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 62rem; margin: 2rem auto }
table { border-collapse: collapse; width: 100%; font-size: 14px }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #d9dee5; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.detail { overflow-wrap: anywhere }
tr.failed td { background: #fdecea }
.passed b { color: #2a7f4f } .failed b { color: #c0392b }
figure { margin: 2rem 0 } img { max-width: 100% } figcaption { font-weight: 600 }
"""
# Even a page that something slipped into can load nothing and run nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    page = folder / HTML_FILE
    page.write_text(_html(report, plots(results, evidence or Evidence())), "utf-8")
    return page


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
    figures = "".join(_figure(name, image) for name, image in images.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="{state}"><b>{escape(report.verdict)}</b></p>\n'
        f"<table>{facts}</table>\n<h2>Gates</h2>\n"
        "<table><tr><th>gate</th><th>value</th><th>asked for</th><th></th><th>what was measured</th></tr>\n"
        f"{''.join(map(_row, report.results))}</table>\n{figures}</body></html>\n"
    )


def _row(result: GateResult) -> str:
    value = "" if result.value is None else number(result.value)
    state = "passed" if result.passed else "failed"
    return (
        f'<tr class="{state}"><td>{escape(result.name)}</td><td class="number">{value}</td>'
        f'<td class="number">{escape(result.comparison)} {number(result.bound)}</td>'
        f'<td><b>{_word(result)}</b></td><td class="detail">{escape(result.detail)}</td></tr>\n'
    )


def _figure(title: str, image: bytes) -> str:
    encoded = base64.b64encode(image).decode()
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<img alt="{escape(title)}" src="data:image/png;base64,{encoded}"></figure>\n'
    )
