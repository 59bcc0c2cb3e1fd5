"""`keek-train evaluate`: arguments, and what it prints."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from keek_server.errors import SetupError
from keek_server.settings import Settings
from keek_training.datasets.commands import Subparsers, report_problems
from keek_training.datasets.dataset import Dataset
from keek_training.publishing.source import TowerSource
from keek_training.run_data import read_training_data
from keek_training.runs import Run

_SHOWN: Final = ("recall@10", "ndcg@10", "recall@20", "ndcg@20", "mrr", "coverage@10")


def add_arguments(subparsers: Subparsers) -> None:
    """Adds the command, for `run_evaluate`."""
    parser = subparsers.add_parser("evaluate", help="measure an exported run on what users turned to")
    parser.add_argument("--run", default="latest", help="name of the run (default: latest)")
    parser.add_argument(
        "--targets",
        metavar="FILE",
        type=Path,
        required=True,
        help="Parquet or CSV: user_id, video_id, and timestamp if known",
    )
    parser.add_argument(
        "--history",
        metavar="FILE",
        type=Path,
        help="what else users are known to have done: user_id, video_id, kind and timestamp if known",
    )
    parser.add_argument("--data", metavar="SPEC", help="where the run's data set is, if not where it was")
    parser.add_argument(
        "--baselines", default="all", help="names, with commas between; all, or none (default: all)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn (default: 1)")
    parser.add_argument("--report", metavar="FILE.html", type=Path, help="write a page with plots")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_evaluate(arguments: argparse.Namespace, settings: Settings) -> int:
    """Measures a run, and prints how good it is; 1 when rows could not be read, though all others count.

    Raises:
        SetupError: When the run, its data or a file is not there or does not fit.
        UnavailableError: When the database is down or late.
    """
    from keek_training.evaluation.evaluate import evaluate
    from keek_training.evaluation.report import write_report
    from keek_training.evaluation.targets import read_targets

    run = Run.named(arguments.run, settings)
    source = TowerSource.of_run(run)
    baselines = _baselines(arguments.baselines)
    if arguments.report and not arguments.report.absolute().parent.is_dir():
        raise SetupError(f"{arguments.report}: its folder does not exist")
    targets = read_targets(arguments.targets)
    training = read_training_data(run, arguments.data, settings)
    history, problems = _history(arguments.history, training)
    problems = [*targets.problems, *problems]
    report_problems(problems)
    evaluation = evaluate(
        training,
        targets,
        source=source,
        baselines=baselines,
        settings=settings,
        history=history,
        seed=arguments.seed,
    )
    facts = {"run": run.name, "data": training.name, "seed": arguments.seed}
    result = facts | evaluation.as_dict()
    if arguments.report:
        write_report(evaluation, result, f"evaluation of {run.name}", facts, arguments.report)
    print(json.dumps(result) if arguments.json else _text(result, list(evaluation.rankings)))
    return 1 if problems else 0


def _history(path: Path | None, training: Dataset) -> tuple[pa.Table | None, list[Any]]:
    from keek_training.evaluation.targets import read_history

    if path is None:
        return None, []
    times_us = training.interactions["event_time_us"].to_numpy()
    return read_history(path, int(times_us[-1]) if len(times_us) else 0)


def _baselines(names: str) -> Sequence[Any]:
    from keek_training.evaluation.baselines import BASELINES

    if names == "none":
        return ()
    by_name = {own.name: own for own in BASELINES}
    wanted = list(by_name) if names == "all" else [name.strip() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in by_name]:
        raise SetupError(f"no baseline {unknown[0]!r}; there are {', '.join(by_name)}")
    return [by_name[name] for name in wanted]


def _text(result: dict[str, Any], rankings: Sequence[str]) -> str:
    count = {name: f"{value:,}" for name, value in result.items() if isinstance(value, int)}
    lines = [
        "{users} users, {targets} targets among {videos} videos",
        "new to training: {new_users} users, {new_video_targets} targets",
        "left out: {targets_seen} targets that were met before, {targets_twice} that were named twice",
        "missed: {targets_unknown} targets that are not in the catalogue",
    ]
    if result["targets_before_known"]:
        lines.append("{targets_before_known} users ask before something that is known of them: a leak")
    lines = [line.format_map(count) for line in lines]
    lines.append(f"{'':14}" + "".join(f"{name:>13}" for name in _SHOWN))
    lines += [f"{name:14}" + "".join(f"{result[name][own]:13.4f}" for own in _SHOWN) for name in rankings]
    lines += _cold_start(result["cold_start"], rankings)
    index = result["index"]
    lines.append(
        f"index {index['kind']}: {index['relative_difference']:.2%} off exact search, "
        f"{index['same_top_10']:.2%} of the first ten the same"
    )
    return "\n".join(lines)


def _cold_start(cold: dict[str, Any], rankings: Sequence[str]) -> list[str]:
    """The first metric of users as if they were new, by what is known of them."""
    if not cold:
        return []
    heads = [f"{own.replace('history_', 'with ')}" for own in cold]
    lines = [f"{_SHOWN[0]} of users as if they were new, of whom so many videos are known"]
    lines.append(f"{'':14}" + "".join(f"{head:>13}" for head in heads))
    return lines + [
        f"{name:14}" + "".join(f"{own[name][_SHOWN[0]]:13.4f}" for own in cold.values()) for name in rankings
    ]
