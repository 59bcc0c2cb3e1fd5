"""How good recommendations are on public data, beside strong simple ones, measured through what is served.

A run is trained on the training part of the data set's own split, exported, and measured as
`keek-train evaluate` does it; baselines are tuned on a part of the training. `served_equals_offline` compares
rankings through the exported towers and the index with exact ones by Keras. `--quick` takes few users and one
pass: it shows that all of it works, and no quality.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.servers import RESULTS, report
from keek_server.console import log_to_stderr
from keek_server.errors import KeekError
from keek_server.settings import Settings
from keek_server.towers.features import Float32Array, Tensors
from keek_training.config import TrainConfig
from keek_training.datasets.dataset import Dataset
from keek_training.evaluation.baselines import BASELINES
from keek_training.evaluation.baselines.protocol import Baseline
from keek_training.evaluation.evaluate import MODEL, WITHIN, Evaluation, evaluate
from keek_training.evaluation.metrics import per_user
from keek_training.evaluation.protocols import PROTOCOLS, Protocol, some_users
from keek_training.evaluation.ranking import rank_by_vectors
from keek_training.evaluation.report import write_report
from keek_training.evaluation.served import corpus_of, user_vectors, with_popular
from keek_training.publishing.source import TowerSource
from keek_training.runs import Run

_SHOWN: Final = (
    "recall@10",
    "ndcg@10",
    "recall@20",
    "ndcg@20",
    "new_videos_recall@10",
    "new_users_recall@10",
)
_COMPARED: Final = ("recall@10", "ndcg@10")
_PLOTS: Final = ("curves", "popularity", "history", "new-videos", "cold-start")
_QUICK_USERS: Final = 400
_QUICK_EPOCHS: Final = 1

CONFIGS: Final = Path(__file__).parent.parent / "training" / "configs"


def main() -> None:
    """Prints one JSON object, also to benchmarks/results/, beside the report and its plots."""
    parser = argparse.ArgumentParser(description="Recommendation quality on public data")
    parser.add_argument("--data", choices=sorted(PROTOCOLS), required=True)
    parser.add_argument("--folder", type=Path, help="of the data set (default: its own in KEEK_TEST_DATA)")
    parser.add_argument(
        "--config", type=Path, help="of the training (default: the data set's in training/configs/, if any)"
    )
    parser.add_argument(
        "--seed", type=int, help="of the training and of what is drawn (default: the config's)"
    )
    parser.add_argument("--baselines-only", action="store_true", help="trains no model")
    parser.add_argument("--quick", action="store_true", help="few users, one pass, the first of each grid")
    arguments = parser.parse_args()
    log_to_stderr()
    folder = arguments.folder or _folder(arguments.data, parser)
    try:
        config = _config(arguments)
        arguments.seed = config.seed
        _run(arguments, folder, config)
    except KeekError as error:
        sys.exit(f"quality: {error}")


def _folder(data: str, parser: argparse.ArgumentParser) -> Path:
    root = os.environ.get("KEEK_TEST_DATA")
    if not root:
        parser.error("KEEK_TEST_DATA names no folder with the public data sets, and there is no --folder")
    return Path(root) / data


def _config(arguments: argparse.Namespace) -> TrainConfig:
    """Of the training: what is given, or what is committed for the data set, or the defaults."""
    own = CONFIGS / f"{arguments.data.removesuffix('-pure')}.yaml"
    path = arguments.config or (own if own.is_file() else None)
    config = TrainConfig.load(path) if path else TrainConfig()
    given = {} if arguments.seed is None else {"seed": arguments.seed}
    return config.model_copy(update=given | ({"epochs": _QUICK_EPOCHS} if arguments.quick else {}))


def _run(arguments: argparse.Namespace, folder: Path, config: TrainConfig) -> None:
    protocol = PROTOCOLS[arguments.data](folder)
    if arguments.quick:
        protocol = some_users(protocol, _QUICK_USERS)
    baselines = [_Untuned(own) for own in BASELINES] if arguments.quick else BASELINES
    with tempfile.TemporaryDirectory(prefix="keek-quality-") as directory:
        settings = Settings(data_dir=Path(directory))
        run, train_s = None, None
        if not arguments.baselines_only:
            run, train_s = _trained(protocol.split.training, config, settings)
        source = TowerSource.of_run(run) if run else None
        evaluation = evaluate(
            protocol.split.training,
            protocol.split.targets,
            source=source,
            baselines=baselines,
            settings=settings,
            tuning=protocol.tuning,
            seed=arguments.seed,
        )
        equal = _equals_offline(evaluation, run, source, protocol) if run and source else None
        cost = _cost(run) if run else None
    rest = {"served_equals_offline": equal, "train_s": train_s, "user_tower": cost}
    _write(arguments, protocol, evaluation, rest)


def _trained(training: Dataset, config: TrainConfig, settings: Settings) -> tuple[Run, float]:
    """A run, exported, and how long training took."""
    from keek_training.export import export
    from keek_training.train_run import train_run

    run = Run.named("quality", settings)
    started = time.monotonic()
    train_run(training, config, run)
    train_s = time.monotonic() - started
    export(run)
    return run, round(train_s, 1)


def _cost(run: Run) -> dict[str, Any]:
    """What a user costs: one with a full history, on one core."""
    export = run.read_export()
    return {
        "history_length": export["history_length"],
        "ms_per_user": export["user_tower"]["ms_per_user"],
    }


def _equals_offline(evaluation: Evaluation, run: Run, source: TowerSource, protocol: Protocol) -> bool:
    """Whether Keras' own vectors, all scored, are as good as what is served, within 1 %."""
    cases = evaluation.cases
    video_tower, user_tower = _keras_towers(run)
    corpus = corpus_of(protocol.split.training, video_tower)
    users = user_vectors(cases, corpus, user_tower, source.history_length)
    offline = with_popular(rank_by_vectors(cases, users, np.asarray(corpus.vectors)), cases, corpus)
    found, exact = (per_user(own, cases.targets).values for own in (evaluation.rankings[MODEL], offline))
    means = [(float(found[name].mean()), float(exact[name].mean())) for name in _COMPARED]
    return all(abs(own - other) <= WITHIN * other for own, other in means)


def _keras_towers(run: Run) -> tuple[Any, Any]:
    from keek_training.backend import ops
    from keek_training.golden import golden_users, golden_videos
    from keek_training.towers import VideoTower, user_tower_of
    from keek_training.weights import load_weights

    config = TrainConfig.load(run.config)
    towers = []
    for tower, inputs in (
        (VideoTower(config.towers, config.seed), golden_videos()),
        (user_tower_of(config.towers, config.seed), golden_users(config.towers.history_length)),
    ):
        tower(inputs)  # makes the weights
        load_weights(tower, run.weights(tower.name))

        def answer(inputs: Tensors, own: Any = tower) -> Float32Array:
            vectors: Float32Array = ops.convert_to_numpy(own(inputs))
            return vectors

        towers.append(answer)
    return towers[0], towers[1]


class _Untuned:
    """A baseline at the first point of its grid."""

    def __init__(self, baseline: Baseline) -> None:
        self.name, self.most_videos = baseline.name, baseline.most_videos
        self.grid, self.fit = baseline.grid[:1], baseline.fit


def _write(
    arguments: argparse.Namespace, protocol: Protocol, evaluation: Evaluation, rest: dict[str, Any]
) -> None:
    whole = evaluation.as_dict()
    split = protocol.split.name
    result = {
        "data": arguments.data,
        "split": split,
        **{name: {metric: whole[name][metric] for metric in _SHOWN} for name in evaluation.rankings},
        **rest,
        "seed": arguments.seed,
        "quick": arguments.quick,
        "users": whole["users"],
        "targets": whole["targets"],
        "tuned": whole["tuned"],
        "cold_start": whole["cold_start"],
        "intervals": {name: whole[name]["intervals"] for name in evaluation.rankings},
        **{name: whole[name] for name in ("index", "model_less_baseline") if name in whole},
    }
    name = f"quality-{arguments.data}-{split}"
    name += ("-baselines" if arguments.baselines_only else "") + ("-quick" if arguments.quick else "")
    RESULTS.mkdir(exist_ok=True)
    facts = {"data": arguments.data, "split": split, "seed": arguments.seed}
    images = write_report(evaluation, whole, f"quality on {arguments.data}", facts, RESULTS / f"{name}.html")
    for plot, image in zip(_PLOTS, images.values(), strict=False):
        (RESULTS / f"{name}-{plot}.png").write_bytes(image)
    report(name, result)


if __name__ == "__main__":
    main()
