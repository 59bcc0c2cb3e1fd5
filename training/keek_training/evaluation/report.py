"""The report of an evaluation: one HTML page that needs nothing else."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from keek_server.pages import page
from keek_training.evaluation.evaluate import Evaluation
from keek_training.evaluation.report_plots import COLD_START, plots
from keek_training.pages import figure

_COLUMNS: Final = (
    "recall@10",
    "recall@20",
    "recall@50",
    "ndcg@10",
    "ndcg@20",
    "mrr",
    "coverage@10",
    "popularity_lift@10",
    "new_videos_recall@10",
    "new_users_recall@10",
)
_LEGEND: Final = (
    "All videos ranked, those that a user has met left out. In brackets: 95 % intervals, by the bootstrap "
    "over users. Definitions: docs/evaluation.md."
)
_FACTS: Final = (
    "users",
    "targets",
    "videos",
    "new_users",
    "new_video_targets",
    "targets_twice",
    "targets_seen",
    "targets_unknown",
    "targets_before_known",
    "problems",
)


def write_report(
    evaluation: Evaluation, result: Mapping[str, Any], title: str, facts: Mapping[str, Any], path: Path
) -> dict[str, bytes]:
    """Writes the page.

    Args:
        evaluation: What was measured.
        result: `Evaluation.as_dict` of it.
        title: Of the page.
        facts: What stands above the figures beside what the evaluation knows itself.
        path: Where to; its folder exists.

    Returns:
        The plots on it, PNGs by title.
    """
    shown = dict(facts) | {name.replace("_", " "): f"{result[name]:,}" for name in _FACTS}
    images = plots(evaluation)
    body = [
        f"<p>{_LEGEND}</p>\n",
        _table(("", ""), [(name, str(value)) for name, value in shown.items()]),
        "<h2>Rankings</h2>\n",
        _table(("", *_COLUMNS), [(name, *_row(result[name])) for name in evaluation.rankings]),
        *_cold_start(result, list(evaluation.rankings)),
        *_comparisons(result),
        *(figure(name, image) for name, image in images.items()),
    ]
    path.write_text(page(title, "".join(body)), "utf-8")
    return images


def _row(figures: Mapping[str, Any]) -> list[str]:
    return [_cell(figures[name], figures["intervals"].get(name)) for name in _COLUMNS]


def _cell(value: float | None, ends: Sequence[float] | None) -> str:
    if value is None:
        return "none"
    return f"{value:.4f}" + (f" [{ends[0]:.4f}, {ends[1]:.4f}]" if ends else "")


def _cold_start(result: Mapping[str, Any], rankings: Sequence[str]) -> list[str]:
    """How good rankings are for users as if they were new."""
    cold = result["cold_start"]
    if not cold:
        return []
    names = ("recall@10", "ndcg@10")
    heads = ["", *(f"{name}, {own.replace('_', ' of ')}" for own in cold for name in names)]
    rows = [
        [
            name,
            *(
                _cell(own[name][metric], own[name]["intervals"][metric])
                for own in cold.values()
                for metric in names
            ),
        ]
        for name in rankings
    ]
    return [f"<h2>{COLD_START}</h2>\n", _table(heads, rows)]


def _comparisons(result: Mapping[str, Any]) -> list[str]:
    """What the model is ahead by, how near the index is to exact search, what baselines were tuned to."""
    parts = []
    if differences := result.get("model_less_baseline"):
        names = ("recall@10", "ndcg@10")
        rows = [
            (baseline, *(_cell(own[name], (own["intervals"] or {}).get(name)) for name in names))
            for baseline, own in differences.items()
        ]
        parts += ["<h2>The model less each baseline, on the same users</h2>\n", _table(("", *names), rows)]
    if index := result.get("index"):
        rows = [(name.replace("_", " "), str(value)) for name, value in index.items()]
        parts += ["<h2>The index beside exact search</h2>\n", _table(("", ""), rows)]
    settings = {
        name: ", ".join(f"{k} {v:g}" for k, v in own.items()) for name, own in result["tuned"].items()
    }
    if chosen := {name: own for name, own in settings.items() if own} | result.get("left_out", {}):
        parts += ["<h2>What the baselines were tuned to</h2>\n", _table(("", ""), list(chosen.items()))]
    return parts


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>\n"
        for first, *rest in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if any(heads) else ''}\n{body}</table>\n"
