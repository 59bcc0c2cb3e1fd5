"""What `keek-server index` found out, for programs and for people."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from keek.cli.output import Table
from keek_server.releases.queries import Queries
from keek_server.releases.release import Release
from keek_server.retrieval.measure import TOGETHER, Comparison, Depth, Measured, Rung
from keek_server.retrieval.plots import Curves, Point
from keek_server.retrieval.rebuild import MeasuredKind

Found = Mapping[str, Any]
"""One JSON object."""

_EXACT: Final = "exact search"
_MARK: Final = "*"


def bench_found(
    release: Release,
    k: int,
    queries: Queries,
    rungs: Sequence[Rung],
    comparison: Comparison,
    depths: Sequence[Depth],
) -> Found:
    """What `bench` found out."""
    report, exact_ms = release.manifest.index, comparison.exact_p50_ms
    measured = zip(rungs, comparison.measured, strict=True)
    return {
        "release": release.id,
        "videos": len(release.corpus.ids),
        "kind": report.kind,
        "nlist": report.nlist,
        "rerank": report.rerank,
        "manifest_recall_at_100": report.recall_at_100,
        "k": k,
        "queries": len(queries.vectors),
        "query_source": queries.source,
        "queries_unseen": queries.unseen,
        "exact_p50_ms": round(exact_ms, 4),
        "efforts": [
            {"effort": rung.effort, "is_tuned": rung.is_tuned, **_numbers(own, exact_ms)}
            for rung, own in measured
        ],
        "depths": [
            {"depth": own.depth, "effort": own.effort, "recall": round(own.recall, 4)} for own in depths
        ],
    }


def tune_found(
    release: Release,
    measured: Sequence[MeasuredKind],
    exact_ms: float,
    best: MeasuredKind | None,
    **asked: int | float | str | None,
) -> Found:
    """What `tune` found out.

    Args:
        release: Whose vectors were built over.
        measured: Kinds.
        exact_ms: Of exact search, beside them.
        best: What is chosen.
        asked: What was asked for, passed on as it is.
    """
    return {
        "release": release.id,
        "videos": len(release.corpus.ids),
        **asked,
        "exact_p50_ms": round(exact_ms, 4),
        "kinds": [_kind(own, exact_ms, is_chosen=own is best) for own in measured],
        "chosen": best.built.report.kind if best else None,
    }


def print_bench(found: Found) -> None:
    """Tables: the efforts, and the depths."""
    source = found["query_source"] + ("" if found["queries_unseen"] else ", some of which it was tuned to")
    print(
        f"release {found['release']}: {found['videos']:,} videos, {found['kind']}, {found['nlist']:,} lists,"
        f" rerank {found['rerank']}\n"
        f"recall@{found['k']} of {found['queries']:,} queries ({source}); exact search takes"
        f" {found['exact_p50_ms']:.4g} ms\n"
    )
    table = Table(
        "TUNED", "EFFORT", f"RECALL@{found['k']}", "+-", "P50 MS", "P99 MS", "X EXACT", f"X{TOGETHER} / X1"
    )
    table.add(
        (_MARK if own["is_tuned"] else "", own["effort"], *_cells(own), own["batch_vs_single"])
        for own in found["efforts"]
    )
    if found["depths"]:
        print()
        Table("DEPTH", "EFFORT", "RECALL").add(
            (own["depth"], own["effort"], f"{own['recall']:.4f}") for own in found["depths"]
        )
    print()


def print_tune(found: Found) -> None:
    """The table of kinds, and how to get the best of them."""
    print(
        f"release {found['release']}: {found['videos']:,} videos; tuned with {found['tuned_with']:,} users,"
        f" measured with {found['queries']:,} others; exact search takes {found['exact_p50_ms']:.4g} ms\n"
    )
    table = Table(
        *("BEST", "KIND", "MIB", "BUILD S", "NLIST", "EFFORT", "RERANK"),
        *(f"RECALL@{found['k']}", "+-", "P50 MS", "P99 MS", "X EXACT"),
    )
    table.add(
        (
            _MARK if own["is_chosen"] else "",
            *(own[name] for name in ("kind", "mib", "build_s", "nlist", "effort", "rerank")),
            *_cells(own),
        )
        for own in found["kinds"]
    )
    print(f"\n{_advice(found)}\n")


def bench_curves(found: Found) -> Curves:
    """The ladder of the release's own index, and exact search."""
    return {found["kind"]: _points(found["efforts"]), _EXACT: [Point(found["exact_p50_ms"], 1.0, True)]}


def tune_curves(found: Found) -> Curves:
    """The ladder of each kind, and exact search."""
    curves = {own["kind"]: _points(own["efforts"]) for own in found["kinds"]}
    return curves | {_EXACT: [Point(found["exact_p50_ms"], 1.0, True)]}


def _advice(found: Found) -> str:
    memory = found["memory_mib"]
    within = "" if memory is None else f" within {memory} MiB"
    planned = f"as it is set now, a publish builds {found['planned']}"
    if found["chosen"] is None:
        return f"none of these reaches a recall of {found['recall_target']:g}{within}; {planned}"
    settings = f"KEEK_INDEX_KIND={found['chosen']} KEEK_INDEX_RECALL_TARGET={found['recall_target']:g}"
    if memory is not None:
        settings += f" KEEK_INDEX_MEMORY_MIB={memory}"
    return (
        f"* the fastest that reaches a recall of {found['recall_target']:g}{within}; the next publish builds"
        f" it with\n  {settings}\n  ({planned})"
    )


def _kind(own: MeasuredKind, exact_ms: float, *, is_chosen: bool) -> Found:
    report = own.built.report
    curve = zip(own.built.rungs, own.curve, strict=True)
    return {
        "kind": report.kind,
        "is_chosen": is_chosen,
        "mib": round(own.built.mib, 2),
        "build_s": round(report.build_s, 2),
        "nlist": report.nlist,
        "effort": own.effort,
        "rerank": report.rerank,
        **_numbers(own.tuned, exact_ms),
        "efforts": [
            {"effort": rung.effort, "is_tuned": rung.is_tuned, **_numbers(each, exact_ms)}
            for rung, each in curve
        ],
    }


def _numbers(own: Measured, exact_ms: float) -> dict[str, float]:
    return {
        "recall": round(own.recall, 4),
        "recall_error": round(own.recall_error, 4),
        "p50_ms": round(own.p50_ms, 4),
        "p99_ms": round(own.p99_ms, 4),
        "speedup_vs_exact": round(exact_ms / own.p50_ms, 2),
        "batch_vs_single": round(own.together, 2),
    }


def _cells(own: Found) -> tuple[float | str, ...]:
    return (
        f"{own['recall']:.4f}",
        f"{own['recall_error']:.4f}",
        *(own[name] for name in ("p50_ms", "p99_ms", "speedup_vs_exact")),
    )


def _points(efforts: Sequence[Found]) -> list[Point]:
    return [Point(own["p50_ms"], own["recall"], own["is_tuned"]) for own in efforts]
