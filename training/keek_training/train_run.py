"""Training as a run: from a data set to a folder that export and publish go on from."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from keek_training.checkpoints import Checkpoints
from keek_training.config import TrainConfig
from keek_training.datasets.dataset import Dataset
from keek_training.plots import draw_learning_curves
from keek_training.runs import Run
from keek_training.train import train
from keek_training.weights import save_weights

log = logging.getLogger(__name__)


def train_run(
    dataset: Dataset,
    config: TrainConfig,
    run: Run,
    *,
    base: Run | None = None,
    read: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Trains, and writes the run's configuration, weights, metrics and learning curves.

    Args:
        dataset: Videos and interactions.
        config: Of the training.
        run: Where it is written; what it held before is gone.
        base: The run whose weights training starts from; `config` is made of its own then.
        read: Where the data set comes from, for the metrics: by it a fine-tuning knows what is new.
        resume: Go on from the checkpoint of the same training; a fine-tuning, which is short, has none.

    Returns:
        The metrics. They are written last: a run without them was not trained to its end.

    Raises:
        SetupError: When the data set holds nothing to train on, or there is nothing to go on from.
    """
    checkpoints = Checkpoints(run, read or {}, resume) if base is None else None
    try:
        trained = train(dataset, config, base, checkpoints=checkpoints)
    except KeyboardInterrupt:
        if checkpoints:
            log.warning("stopped: %s", checkpoints.way_on())
        raise
    run.start()
    with run.writing(run.config) as aside:
        aside.write_text(trained.config.dumps(), "utf-8")
    for tower in (trained.model.user_tower, trained.model.video_tower):
        with run.writing(run.weights(tower.name)) as aside:
            save_weights(tower, aside)
    history = [asdict(epoch) for epoch in trained.history]
    with run.writing(run.curves) as aside:
        draw_learning_curves(history, aside)
    metrics = (
        trained.metrics
        | dict(read or {})
        | {
            "data": dataset.name,
            "videos": dataset.videos.num_rows,
            "interactions": dataset.interactions.num_rows,
            "epochs": len(history),
        }
    )
    run.write_metrics(metrics, history)
    if checkpoints:
        checkpoints.remove()
    return metrics
