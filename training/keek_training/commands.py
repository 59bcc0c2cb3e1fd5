"""`keek-train export`, `export-clip`, `publish` and `demo`: arguments, and what each prints."""

import argparse
import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keek_server.embedded import EmbeddedStack, with_running_stack
from keek_server.errors import SetupError
from keek_server.releases.manifest import Manifest
from keek_server.settings import Settings
from keek_training.clip.files import DEFAULT_NAME, ClipExport
from keek_training.datasets.commands import Subparsers
from keek_training.publishing.source import DEFAULT_HISTORY_LENGTH, TowerSource
from keek_training.runs import Run

if TYPE_CHECKING:
    from keek_training.publishing.publish import Wishes


def add_arguments(subparsers: Subparsers) -> None:
    """Adds the four commands."""
    export = subparsers.add_parser("export", help="export a run's towers to ONNX, compared with Keras")
    export.add_argument("--run", default="latest", help="name of the run (default: latest)")
    clip = subparsers.add_parser("export-clip", help="export CLIP's encoders to ONNX, compared with torch")
    clip.add_argument("--name", default=DEFAULT_NAME, help="name of the export (default: latest)")
    clip.add_argument("--model", help="open-clip's name of a model, as ViT-B-32; a small one when left out")
    weights = clip.add_mutually_exclusive_group()
    weights.add_argument("--pretrained", metavar="TAG|PATH", help="open-clip's tag, or a file of weights")
    weights.add_argument("--untrained", action="store_true", help="random weights, seeded, on purpose")
    publish = subparsers.add_parser("publish", help="make an exported run the live release")
    publish.add_argument("--run", help="name of the run (default: latest)")
    publish.add_argument("--user-tower", type=Path, metavar="FILE", help="an ONNX file, instead of a run")
    publish.add_argument("--video-tower", type=Path, metavar="FILE", help="the ONNX file that goes with it")
    publish.add_argument(
        "--history-length",
        type=int,
        default=DEFAULT_HISTORY_LENGTH,
        help=f"interactions that --user-tower reads (default: {DEFAULT_HISTORY_LENGTH})",
    )
    publish.add_argument(
        "--no-activate", action="store_true", help="register it only: to try it as a canary or a shadow"
    )
    publish.add_argument(
        "--force", metavar="REASON", default="", help="publish although a gate refuses it; the reason is kept"
    )
    publish.add_argument(
        "--wait-s",
        type=float,
        metavar="SECONDS",
        default=0.0,
        help="how long to wait for somebody else who publishes (default: not at all)",
    )
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


def run_export(arguments: argparse.Namespace, settings: Settings) -> int:
    """Exports a run, and prints how far ONNX and Keras are apart."""
    # Nothing has imported Keras yet; a run that was trained by another backend is exported by this one.
    os.environ["KERAS_BACKEND"] = "tensorflow"
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
    from keek_training.publishing.publish import Wishes

    wishes = Wishes(
        arguments.clip,
        arguments.force.strip(),
        activate=not arguments.no_activate,
        wait_s=arguments.wait_s,
    )
    release = asyncio.run(_publish(_source(arguments, settings), settings, wishes))
    recall = f"recall@100 of its index {release.index.recall_at_100:.4f}"
    if wishes.activate:
        print(f"release {release.release_id} is active; {recall}")
    else:
        print(f"release {release.release_id} is ready; {recall}")
        print(f"to try it: keek releases canary {release.release_id} 5")
    if release.clip is not None and release.clip.untrained:
        print("its CLIP is untrained: what searches find by it means nothing")
    return 0


def _source(arguments: argparse.Namespace, settings: Settings) -> TowerSource:
    files = arguments.user_tower, arguments.video_tower
    if files == (None, None):
        return TowerSource.of_run(Run.named(arguments.run or "latest", settings))
    if None in files or arguments.run is not None:
        raise SetupError("--user-tower and --video-tower go together, and without --run")
    return TowerSource.of_files(*files, arguments.history_length)


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


async def _publish(source: TowerSource, settings: Settings, wishes: "Wishes") -> Manifest:
    from keek_training.publishing.publish import publish

    running = with_running_stack(settings)
    if running is not None:
        return await publish(source, running, wishes)
    async with EmbeddedStack(settings) as stack:
        return await publish(source, stack.settings, wishes)
