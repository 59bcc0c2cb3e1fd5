"""`keek-train train`, `export`, `export-clip`, `publish` and `demo`: arguments, and what each prints."""

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from keek_server.embedded import EmbeddedStack, with_running_stack
from keek_server.errors import SetupError
from keek_server.releases.release import clip_is_read
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_training.clip.files import DEFAULT_NAME, ClipExport
from keek_training.datasets.commands import Subparsers
from keek_training.datasets.dataset import Dataset
from keek_training.datasets.registry import open_dataset
from keek_training.datasets.store import load_dataset
from keek_training.runs import Run


def add_arguments(subparsers: Subparsers) -> None:
    """Adds the five commands."""
    train = subparsers.add_parser("train", help="train both towers")
    train.add_argument("--run", default="latest", help="name of the run (default: latest)")
    train.add_argument("--data", help="a data set as for import; the database when left out")
    train.add_argument("--config", type=Path, help="YAML or JSON with what differs from the defaults")
    train.add_argument("--epochs", type=int, help="the most passes over the data")
    train.add_argument("--seed", type=int)
    export = subparsers.add_parser("export", help="export a run's towers to ONNX, compared with Keras")
    export.add_argument("--run", default="latest", help="name of the run (default: latest)")
    clip = subparsers.add_parser("export-clip", help="export CLIP's encoders to ONNX, compared with torch")
    clip.add_argument("--name", default=DEFAULT_NAME, help="name of the export (default: latest)")
    clip.add_argument("--model", help="open-clip's name of a model, as ViT-B-32; a small one when left out")
    weights = clip.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", metavar="TAG|PATH", help="open-clip's tag, or a file of weights")
    weights.add_argument("--untrained", action="store_true", help="random weights, seeded, on purpose")
    publish = subparsers.add_parser("publish", help="make an exported run the live release")
    publish.add_argument("--run", default="latest", help="name of the run (default: latest)")
    publish.add_argument(
        "--clip",
        help="name of the exported CLIP, or none (default: latest if exported, else the live release's)",
    )
    demo = subparsers.add_parser("demo", help="the whole path, shown")
    demo.add_argument("--data", default="synth", help="a data set as for import (default: synth)")
    demo.add_argument("--epochs", type=int, help="the most passes over the data in training")
    demo.add_argument(
        "--no-clip",
        action="store_true",
        help="leave out CLIP, whose export needs keek[clip], and the upload of a clip",
    )
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


def run_export_clip(arguments: argparse.Namespace, settings: Settings) -> int:
    """Exports a CLIP, and prints how far ONNX and torch are apart, and whether it was ever trained."""
    try:
        from keek_training.clip.export import export_clip
        from keek_training.clip.model import load_clip
    except ImportError as error:
        raise SetupError(f"exporting CLIP needs the extra keek[clip] ({error})") from error

    target = ClipExport.named(arguments.name, settings)
    clip = load_clip(arguments.model, arguments.pretrained, untrained=arguments.untrained)
    report = export_clip(clip, target)
    print(f"{report['clip_model']}: {'; '.join(map(_describe, report['encoders'].items()))}")
    if report["untrained"]:
        print("untrained: the weights are random, so what its vectors find shows nothing but that it works")
    return 0


def _describe(encoder: tuple[str, dict[str, Any]]) -> str:
    name, entry = encoder
    return (
        f"{name} max abs difference {entry['max_abs_difference']:.1e}, "
        f"{entry['ms_by_threads']['1']} ms on one core, {entry['size_bytes']:,} bytes"
    )


def run_publish(arguments: argparse.Namespace, settings: Settings) -> int:
    """Publishes a run, through the stack that runs in the data directory or one of its own."""
    release_id, recall = asyncio.run(_publish(Run.named(arguments.run, settings), settings, arguments.clip))
    print(f"release {release_id} is active; recall@100 of its index {recall:.4f}")
    return 0


def run_demo(arguments: argparse.Namespace, settings: Settings) -> int:
    """Shows the whole path; 1 when something that should happen did not."""
    from keek_training.demo.demo import demo

    return demo(
        arguments.data,
        settings,
        arguments.output,
        epochs=arguments.epochs,
        with_clip=not arguments.no_clip,
    )


async def _read_log(settings: Settings) -> Dataset:
    """The log, with the clip vectors that the next release will read."""
    from keek_training.publishing.clip import choose_clip
    from keek_training.publishing.kept import active_release

    async with open_database(settings) as database:
        clip = choose_clip(None, await active_release(database), settings)
        own = clip.record.clip_model if clip else ""
        return await load_dataset(database, lambda clip_model: clip_is_read(clip_model, own))


async def _publish(run: Run, settings: Settings, clip: str | None) -> tuple[str, float]:
    from keek_training.publishing.publish import publish

    running = with_running_stack(settings)
    if running is not None:
        manifest = await publish(run, running, clip=clip)
    else:
        async with EmbeddedStack(settings) as stack:
            manifest = await publish(run, stack.settings, clip=clip)
    return manifest.release_id, manifest.index.recall_at_100
