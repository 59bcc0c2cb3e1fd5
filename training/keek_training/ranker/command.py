"""`keek-train ranker`: a ranker for the towers of a release, learnt from the feeds that it served."""

import argparse
import asyncio
import json
import os
from typing import Final

from keek_server.commands import parse_since
from keek_server.experiments.attribution import WINDOW_HOURS
from keek_server.settings import Settings
from keek_training.datasets.commands import Subparsers
from keek_training.runs import Run

_HOUR_US: Final = 3600 * 1_000_000


def add_ranker_arguments(subparsers: Subparsers) -> None:
    """Adds the command, for `run_ranker`."""
    parser = subparsers.add_parser(
        "ranker", help="train a ranker for a release's towers, from the exposure log; publish takes it along"
    )
    parser.add_argument(
        "--release", metavar="RELEASE_ID", help="a release that is ready (default: the active one)"
    )
    parser.add_argument(
        "--run",
        help="another exported run, whose towers it is for (default: the run that the release came from)",
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        type=parse_since,
        help="feeds since then, ISO 8601 (default: since the release was made)",
    )
    parser.add_argument(
        "--window-hours",
        metavar="H",
        type=float,
        default=WINDOW_HOURS,
        help="how long after a feed an interaction may come that it caused (default: 24)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_ranker(arguments: argparse.Namespace, settings: Settings) -> int:
    """Trains one, and prints how it orders; 1 when it orders worse than the dot product does."""
    # Nothing has imported Keras yet; ONNX is written by this backend.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    from keek_training.ranker.learning import learn_ranker

    run, report = asyncio.run(
        learn_ranker(
            settings,
            release_id=arguments.release,
            run=Run.named(arguments.run, settings) if arguments.run else None,
            since_us=arguments.since,
            window_us=int(arguments.window_hours * _HOUR_US),
        )
    )
    if arguments.json:
        print(json.dumps({"run": run.name, **report}))
    else:
        print(
            f"ranker of run {run.name}: NDCG {report['ndcg']:.4f} on the latest"
            f" {report['pages']['latest']:,} pages, the dot product's order {report['ndcg_dot_product']:.4f};"
            f" {report['ms_per_page']} ms a page"
        )
        if report["refused"]:
            print(f"it is not published: {report['refused']}")
        else:
            print(f"to serve it: keek-train publish --run {run.name}")
    return 1 if report["refused"] else 0
