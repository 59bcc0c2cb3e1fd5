"""`summary.py FOLDER`: ghz's JSON reports as one table; exit code 1 when any call failed."""

import json
import sys
from pathlib import Path
from typing import Any

_NS_PER_MS = 1e6
_PERCENTAGES = (50, 95, 99)


def row(report: dict[str, Any]) -> str:
    """One run: calls, successes, calls a second, and latencies in milliseconds."""
    latencies = {each["percentage"]: each["latency"] for each in report["latencyDistribution"] or ()}
    shown = [latencies.get(percentage, 0) for percentage in _PERCENTAGES]
    columns = "".join(f"{latency / _NS_PER_MS:9.2f}" for latency in [*shown, report["slowest"]])
    succeeded = report["statusCodeDistribution"].get("OK", 0)
    return f"{report['name']:26}{report['count']:8}{succeeded:8}{report['rps']:9.0f}{columns}"


def errors(report: dict[str, Any]) -> list[str]:
    """What went wrong in one run, a line a kind."""
    codes = [f"{code}: {count}" for code, count in report["statusCodeDistribution"].items() if code != "OK"]
    texts = [f"{count} x {text}" for text, count in report["errorDistribution"].items()]
    wanted = report["options"]["total"]
    missing = [f"{report['count']} of {wanted} calls made"] if report["count"] != wanted else []
    return [f"{report['name']}: {line}" for line in (*codes, *texts, *missing)]


def read_reports(folder: Path) -> list[dict[str, Any]]:
    """All reports of a folder, in the order that they were written."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text("utf-8")) for path in paths]


def main(folder: Path) -> int:
    """Prints the table, and below it every error."""
    reports = read_reports(folder)
    print(f"{'':26}{'calls':>8}{'OK':>8}{'calls/s':>9}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'max ms':>9}")
    for report in reports:
        print(row(report))
    found = [line for report in reports for line in errors(report)]
    print("\n".join(found) or "every call succeeded")
    return 1 if found or not reports else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
