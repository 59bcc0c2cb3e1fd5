"""The optimiser of a training, and the learning rate of each of its steps."""

from typing import Any, Final

from keek_training.backend import Tensor, keras, ops
from keek_training.config import TrainConfig
from keek_training.devices import scaled, step_is_compiled
from keek_training.model import TwoTowers

_WARM_UP_SHARE: Final = 0.1
_LAST_RATE_SHARE: Final = 0.05
_GRADIENT_NORM: Final = 1.0
# Weight decay pulls towards zero what only some steps touch, and scales: not these.
_NO_DECAY: Final = ("table", "unknown", "bias", "gamma", "beta", "embeddings")


def compile_model(model: TwoTowers, config: TrainConfig, steps: int) -> None:
    """Gives the model its optimiser: AdamW, warmed up over a part of the first epoch's steps."""
    optimizer = keras.optimizers.AdamW(
        _rate(config, steps),
        weight_decay=config.weight_decay,
        global_clipnorm=_GRADIENT_NORM,
        use_ema=config.average > 0,
        ema_momentum=config.average,
    )
    optimizer.exclude_from_weight_decay(var_names=list(_NO_DECAY))
    model.compile(
        optimizer=scaled(optimizer, config.attention_precision),
        loss=None,
        jit_compile=step_is_compiled(config.jit),
    )


def _rate(config: TrainConfig, steps: int) -> Any:
    warm_up, total = max(1, int(_WARM_UP_SHARE * steps)), steps * config.epochs
    if config.cooldown is not None:
        return Trapezium(config.learning_rate, warm_up, total, config.cooldown)
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=max(1, total - warm_up),
        alpha=_LAST_RATE_SHARE,
        warmup_target=config.learning_rate,
        warmup_steps=warm_up,
    )


class Trapezium(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """A straight line up, the peak, and a straight line down to 0 over the last share of the steps."""

    def __init__(self, peak: float, warm_up: int, steps: int, cooldown: float) -> None:
        super().__init__()
        self._peak, self._warm_up, self._steps, self._cooldown = peak, warm_up, steps, cooldown

    def __call__(self, step: Tensor) -> Tensor:
        """The rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        rising = (step + 1.0) / self._warm_up
        falling = (self._steps - step) / max(1.0, self._cooldown * self._steps)
        return self._peak * ops.clip(ops.minimum(rising, falling), 0.0, 1.0)
