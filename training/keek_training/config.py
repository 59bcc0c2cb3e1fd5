"""Everything that shapes a training run; saved beside its result as config.json."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keek_server.errors import SetupError
from keek_server.interactions.kinds import InteractionKind
from keek_server.towers.contract import DIMENSION

Rate = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TowerConfig(_Config):
    """The shape of both towers: what is needed to build them again."""

    history_length: Annotated[int, Field(ge=1, le=200)] = 50
    """Interactions that the user tower reads, the newest of a history."""
    encoder: Literal["attention", "ridge"] = "attention"
    """What reads a history: attention, or a ridge regression on its vectors, which is iALS' step for a user;
    `heads`, `blocks`, `feed_forward` and `age_bias` say nothing of that."""
    solver_steps: Annotated[int, Field(ge=1, le=32)] = 6
    """Conjugate gradients of `ridge`: as many as a history has videos are exact, few are near it."""
    blocks: Annotated[int, Field(ge=1, le=8)] = 2
    """Causal attention blocks."""
    heads: Count = 2
    """Attention heads; must divide the 64 dimensions."""
    feed_forward: Count = 128
    """Width of the hidden layer of each block."""
    age_bias: bool = True
    """Whether attention also sees how long ago each key is, not only how far back. It is what costs
    most over long histories, in training and in serving."""
    dropout: Rate = 0.2
    """Of the history's tokens and of each block's two branches."""
    content_width: Count = 128
    """Width of the hidden layer over owner, tags, duration and clip vector."""
    owner_dimension: Count = 32
    tag_dimension: Count = 32
    clip_width: Count = 64
    """What the clip vector is projected to."""
    video_buckets: Count | None = None
    """Rows of each of the two id tables; from the data when unset, as the next three."""
    owner_buckets: Count | None = None
    tag_buckets: Count | None = None
    user_buckets: Count | None = None
    id_dropout: Rate = 0.1
    """How often a video's id is hidden in training, so that content alone serves new uploads."""
    owner_dropout: Rate = 0.2
    """How often a video's owner is hidden in training."""
    user_dropout: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """How often a user's id is hidden in training, so that a history alone serves new users. With 1
    no id is ever known: users are what they did."""
    longest_age_s: Annotated[float, Field(gt=0)] | None = None
    """Ages beyond this count as this; the longest of the training data when unset, so that no
    age is read that training never saw."""


class FineTuning(_Config):
    """What is different when training starts from a run's weights."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Peak; the optimiser begins anew, so it is warmed up as in full training."""
    epochs: Count = 1
    """The most passes; each is over little data."""
    replay: Annotated[float, Field(ge=0)] = 1.0
    """Windows without anything new, drawn evenly, for each window that holds something new: without
    them the towers forget what nobody did lately. Half of them come from users who did nothing new."""
    rows_per_user: Count = 400
    """Interactions of each user that are read, the newest."""
    most_new: Count = 1_000_000
    """New interactions that one fine-tuning takes, the newest."""
    validation_share: Rate = 0.1
    """Share of the users whose last target is held out, at most `validation_users`."""


class SetTargets(_Config):
    """Requests with several targets each, in place of the next video at every position."""

    asked: Literal["later", "hidden"] = "later"
    """`later`: from the moment of one of the user's targets, drawn, all that came after. `hidden`: a
    part of what the user did, drawn, from the rest: for data without order or times."""
    most: Count = 32
    """Targets of a request, drawn where there are more. A user who has more asks more often."""
    horizon: Count | None = None
    """Of `later`: no more than so many of the next targets."""
    spare_read: bool = False
    """Whether what a request reads is no candidate: what was met is never recommended again, and need not be
    pushed away from what is like it."""
    hidden_share: tuple[Rate, Rate] = (0.2, 0.8)
    """Of `hidden`: the least and the largest share of a user's videos; drawn for each request."""
    shuffled: bool = False
    """Read a history in another order each time: where its order means nothing."""


class Factors(_Config):
    """Towers that begin as a matrix factorisation (iALS), for data so few that gradients alone find less."""

    dimensions: Annotated[int, Field(ge=1, le=DIMENSION)] = 32
    """Of the factors; the other dimensions of a vector are what its clip vector says."""
    alpha: Annotated[float, Field(gt=0)] = 300.0
    """What a met video weighs beside one that was not met."""
    regularization: Annotated[float, Field(gt=0)] = 900.0
    """L2 of both sides, on the scale of `alpha`."""
    iterations: Count = 15
    restarts: Count = 4
    """Factorisations that begin differently; the mean of them is what counts."""
    content_weight: Annotated[float, Field(gt=0)] = 0.03
    """Of what clip vectors say beside the factors: the mean square length of that part."""
    unknown_content: Annotated[float, Field(gt=0)] = 5.0
    """How many times longer that part is in a video that training does not know, in the place of factors: the
    more, the more of such videos are shown."""
    sharpness: Annotated[float, Field(gt=0)] = 10.0
    """Of the scores, which are about 0 to 1: the softmax that training goes on with wants more."""


class TrainConfig(_Config):
    """One training run."""

    towers: TowerConfig = TowerConfig()
    seed: int = 1
    factors: Factors | None = None
    """What the towers begin as; weights that are drawn when unset, and a base's in fine-tuning."""
    epochs: Annotated[int, Field(ge=0)] = 6
    """The most passes over the data; early stopping ends sooner. 0 leaves the towers as they begin, which
    pays with `factors` alone."""
    fit_epochs: Annotated[int, Field(ge=0)] | None = None
    """Passes where nothing is held out, as with `--fit all`: what early stopping found best where something
    was. `epochs` when unset; the rate follows `epochs` in any case."""
    patience: Count = 3
    """Epochs without a better validation NDCG@10 before training stops."""
    batch_size: Count | None = None
    """Windows of one user's history a step; each trains all its positions. From the data when
    unset: 32 to 128, so that an epoch of little data has steps enough."""
    padded_lengths: Annotated[int, Field(ge=1, le=4)] = 1
    """Lengths that windows are padded to: the longest, its half, a quarter, ... Where many histories
    are short, more lengths save much of a pass; each has its own compiled step. Batches of shorter
    windows hold more of them."""
    overlap: Rate = 0.5
    """Share of a window that the next older one of the same user reads again, as history alone."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    """Peak of AdamW's rate: linear warm-up over a tenth of the first epoch, then a cosine."""
    cooldown: Annotated[float, Field(gt=0, le=1)] | None = None
    """Instead of the cosine: the peak up to this last share of all steps, then a straight line to 0. What
    is trained before does not depend on how many epochs there will be."""
    average: Rate = 0.0
    """Momentum of the moving average of all weights, which is what is measured and kept: over the last
    1 / (1 - momentum) steps, about. 0 keeps the weights themselves, as does fine-tuning, which is short."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW's, on matrices of layers; not on embeddings, biases and scales."""
    kind_weights: dict[InteractionKind, Annotated[float, Field(ge=0)]] = {
        InteractionKind.VIEW: 1.0,
        InteractionKind.LIKE: 2.0,
        InteractionKind.SAVE: 2.0,
        InteractionKind.SHARE: 2.0,
    }
    """What a target weighs in the loss; a kind that is not named is never a target."""
    set_targets: SetTargets | None = None
    """Trains on sets of videos; the next video at every position when unset, and in fine-tuning."""
    full_softmax_below: Annotated[int, Field(ge=0)] = 20_000
    """Catalogues up to this size are trained with the full softmax, larger ones with a sampled."""
    negatives: Count = 4096
    """Shared negatives a step of the sampled softmax."""
    validation_users: Annotated[int, Field(ge=0)] = 2000
    """Users whose last target is held out; 0 trains on everything, without early stopping."""
    base: str | None = None
    """The run whose weights training starts from; its `towers` hold then."""
    fine_tuning: FineTuning = FineTuning()
    softmax_precision: Literal["float32", "bfloat16"] = "float32"
    """What the full softmax over next videos is computed in, from logits to gradients; its sums stay
    float32. bfloat16 is three times as fast on CPUs with AMX, and slower on those without."""
    jit: bool = False
    """Compile the training step with XLA: pays on an accelerator; on CPUs it costs half a minute
    and gains nothing. On the JAX backend it is compiled in any case."""
    attention_precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Keras' policy of what the attention blocks compute in; weights, losses and what is exported stay
    float32. Pays on an accelerator."""
    devices: Count = 1
    """Over how many devices each batch is spread; more than one needs the JAX backend."""

    @classmethod
    def load(cls, path: Path) -> "TrainConfig":
        """Reads a YAML or JSON file; what it leaves out keeps its default.

        Raises:
            SetupError: When it cannot be read, names an unknown field or breaks a bound.
        """
        try:
            return cls.of(yaml.safe_load(path.read_text("utf-8")) or {}, str(path))
        except (OSError, yaml.YAMLError) as error:
            raise SetupError(f"cannot read the configuration {path}: {error}") from None

    @classmethod
    def of(cls, values: Any, name: str = "configuration") -> "TrainConfig":
        """Checks a plain mapping; `name` stands in the message.

        Raises:
            SetupError: When it names an unknown field or breaks a bound.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [f"{'.'.join(map(str, e['loc'])) or name}: {e['msg']}" for e in error.errors()]
            raise SetupError(f"{name} does not fit: {'; '.join(lines)}") from None

    def from_base(self, base: str, towers: TowerConfig) -> "TrainConfig":
        """For fine-tuning the run `base`: its towers, and the rate and passes of `fine_tuning`."""
        tuning = self.fine_tuning
        own = {"learning_rate": tuning.learning_rate, "epochs": tuning.epochs, "average": 0.0}
        return self.model_copy(update=own | {"base": base, "towers": towers, "seed": self.seed + 1})

    def dumps(self) -> str:
        """As JSON that `load` reads."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"
