"""`metrics.py HOST:PORT FILE` keeps what a server tells Prometheus; what grew between two such files."""

import sys
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_S = 5.0
_PREFIX = "keek_"


@dataclass(frozen=True, slots=True)
class Timing:
    """What a histogram saw between two moments."""

    count: int
    mean: float
    bounds: dict[float, float]
    """How many were at most so much; the last bound is infinite."""

    def at_most(self, share: float) -> float:
        """The least bound of a bucket below which this share lies."""
        return min(bound for bound, count in self.bounds.items() if count >= share * self.count)


Samples = dict[tuple[str, str], float]
"""By a sample's name and its labels, as `method="ListFeed",code="OK"`."""


def scrape(address: str) -> str:
    """The text as the server gives it.

    Raises:
        OSError: When there are no metrics at this address.
    """
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=_TIMEOUT_S) as answer:
        return str(answer.read(), "utf-8")


def counted(before: str, after: str) -> dict[str, float]:
    """By how much each of Keek's own counters grew; what did not grow is left out."""
    old = _samples(before, "counter")
    grown = {key: value - old.get(key, 0.0) for key, value in _samples(after, "counter").items()}
    return {
        _shown(name, labels): change
        for (name, labels), change in grown.items()
        if change and name.endswith("_total")
    }


def timed(before: str, after: str) -> dict[str, Timing]:
    """What each of Keek's own histograms saw, in its own unit; what saw nothing is left out."""
    old = _samples(before, "histogram")
    buckets: dict[str, dict[float, float]] = defaultdict(dict)
    sums: dict[str, float] = {}
    for (name, labels), value in _samples(after, "histogram").items():
        change = value - old.get((name, labels), 0.0)
        parts = [part for part in labels.split(",") if part and not part.startswith("le=")]
        key = _shown(name.removesuffix("_bucket").removesuffix("_sum"), ",".join(parts))
        if name.endswith("_bucket"):
            bound = next(part for part in labels.split(",") if part.startswith("le="))
            buckets[key][float(bound.removeprefix('le="').removesuffix('"'))] = change
        elif name.endswith("_sum"):
            sums[key] = change
    totals = {key: round(bounds[float("inf")]) for key, bounds in buckets.items()}
    return {key: Timing(n, sums[key] / n, buckets[key]) for key, n in totals.items() if n > 0}


def _samples(text: str, kind: str) -> Samples:
    return {
        (
            sample.name,
            ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(text)
        if family.type == kind and family.name.startswith(_PREFIX)
        for sample in family.samples
    }


def _shown(name: str, labels: str) -> str:
    return f"{name}{{{labels}}}" if labels else name


def main(address: str, path: Path) -> int:
    """Writes the file; 1 when there are no metrics at the address."""
    try:
        text = scrape(address)
    except OSError as error:
        print(f"no metrics at {address}: {error}", file=sys.stderr)
        return 1
    path.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
