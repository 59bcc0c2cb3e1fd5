"""A program: some steps of training from given weights, on the backend and devices that the environment says.

    python training_steps.py WEIGHTS DEVICES PRECISION

Without a folder WEIGHTS it is made, with the weights of before the first step. Prints the losses as JSON.
Nothing is drawn in a step, so that everybody's losses are to be the same.
"""

import json
import sys
from itertools import islice
from pathlib import Path

from keek_training.batches import Batches
from keek_training.config import TrainConfig
from keek_training.datasets.synth import parse_config, synthesise
from keek_training.devices import padded, spread_over
from keek_training.optimiser import compile_model
from keek_training.train import train
from keek_training.weights import load_weights, save_weights

_STEPS = 3
_CONFIG = {
    "towers": {
        "history_length": 8,
        "blocks": 1,
        "feed_forward": 16,
        "content_width": 16,
        "dropout": 0,
        "id_dropout": 0,
        "owner_dropout": 0,
        "user_dropout": 0,
    },
    "epochs": 1,
    "batch_size": 31,  # no multiple of two devices
    "validation_users": 20,
}


def losses(weights: Path, devices: int, precision: str) -> list[float]:
    """Of each step; the last one shows that the steps before it changed the weights alike."""
    dataset = synthesise(parse_config("users=60,videos=121,interactions=2400,seed=3,end=2026-01-01"))
    config = TrainConfig.of(_CONFIG | {"devices": devices, "attention_precision": precision})
    trained = train(dataset, config)  # that everything that training does works on this backend
    towers = (trained.model.user_tower, trained.model.video_tower)
    if not weights.exists():
        weights.mkdir()
        for tower in towers:
            save_weights(tower, weights / f"{tower.name}.npz")
    for tower in towers:
        load_weights(tower, weights / f"{tower.name}.npz")
    with spread_over(devices):
        compile_model(trained.model, config, trained.steps)
    trained.random.bit_generator.state = type(trained.random.bit_generator)(5).state
    windows = trained.parts.training
    batches = Batches(trained.sequences, windows, length=8, batch_size=31, negatives=None, rng=trained.random)
    with spread_over(devices):
        return [
            float(trained.model.train_on_batch(padded(batch, devices))) for batch in islice(batches, _STEPS)
        ]


if __name__ == "__main__":
    print(json.dumps(losses(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])))
