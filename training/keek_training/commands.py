"""`keek-train train`, `export`, `publish` and `demo`: arguments, and what each prints."""

import argparse
import asyncio
import json
from pathlib import Path

from keek_server.embedded import EmbeddedStack, with_running_stack
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_training.datasets.commands import Subparsers
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import load_dataset
from keek_training.runs import Run


def add_arguments(subparsers: Subparsers) -> None:
    """Adds the four commands."""
    train = subparsers.add_parser("train", help="train both towers")
    train.add_argument("--run", default="latest", help="name of the run (default: latest)")
    train.add_argument("--data", help="a data set as for import; the database when left out")
    train.add_argument("--config", type=Path, help="YAML or JSON with what differs from the defaults")
    train.add_argument("--epochs", type=int, help="the most passes over the data")
    train.add_argument("--seed", type=int)
    export = subparsers.add_parser("export", help="export a run's towers to ONNX, compared with Keras")
    export.add_argument("--run", default="latest", help="name of the run (default: latest)")
    publish = subparsers.add_parser("publish", help="make an exported run the live release")
    publish.add_argument("--run", default="latest", help="name of the run (default: latest)")
    demo = subparsers.add_parser("demo", help="the whole path, shown")
    demo.add_argument("--data", default="synth", help="a data set as for import (default: synth)")
    demo.add_argument("--epochs", type=int, help="the most passes over the data in training")
    demo.add_argument("--output", type=Path, default=Path("var/demo.json"), help="what it showed, as JSON")


def run_train(arguments: argparse.Namespace, settings: Settings) -> int:
    """Trains a run, on the log in the database or on a data set."""
    from keek_training.config import TrainConfig
    from keek_training.train_run import train_run

    given = {name: getattr(arguments, name) for name in ("epochs", "seed") if getattr(arguments, name)}
    config = TrainConfig.load(arguments.config) if arguments.config else TrainConfig()
    config = TrainConfig.of(config.model_dump() | given, "the options")
    run = Run.named(arguments.run, settings)
    dataset = open_dataset(arguments.data) if arguments.data else asyncio.run(_read_log(settings))
    metrics = train_run(dataset, config, run)
    print(json.dumps(metrics))
    print(f"trained: {run.folder}; learning curves: {run.curves}")
    return 0


def run_export(arguments: argparse.Namespace, settings: Settings) -> int:
    """Exports a run, and prints how far ONNX and Keras are apart."""
    from keek_training.export import export

    run = Run.named(arguments.run, settings)
    report = export(run)
    for tower in ("user_tower", "video_tower"):
        entry = report[tower]
        print(f"{tower}: max abs difference {entry['max_abs_difference']:.1e}, {entry['size_bytes']:,} bytes")
    print(
        f"user tower: {report['user_tower']['ms_per_user']} ms a user, history of {report['history_length']}"
    )
    return 0


def run_publish(arguments: argparse.Namespace, settings: Settings) -> int:
    """Publishes a run, through the stack that runs in the data directory or one of its own."""
    release_id, recall = asyncio.run(_publish(Run.named(arguments.run, settings), settings))
    print(f"release {release_id} is active; recall@100 of its index {recall:.4f}")
    return 0


def run_demo(arguments: argparse.Namespace, settings: Settings) -> int:
    """Shows the whole path; 1 when something that should happen did not."""
    from keek_training.demo.demo import demo

    return demo(arguments.data, settings, arguments.output, epochs=arguments.epochs)


async def _read_log(settings: Settings) -> Dataset:
    async with open_database(settings) as database:
        return await load_dataset(database)


async def _publish(run: Run, settings: Settings) -> tuple[str, float]:
    from keek_training.publishing.publish import publish

    running = with_running_stack(settings)
    if running is not None:
        manifest = await publish(run, running)
    else:
        async with EmbeddedStack(settings) as stack:
            manifest = await publish(run, stack.settings)
    return manifest.release_id, manifest.index.recall_at_100
