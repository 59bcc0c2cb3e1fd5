"""Simple recommenders that a model has to beat, each tuned on a validation part."""

from collections.abc import Sequence
from typing import Final

from keek_training.evaluation.baselines.ease import Ease, EaseRecency
from keek_training.evaluation.baselines.ials import Ials
from keek_training.evaluation.baselines.itemknn import ItemKnn
from keek_training.evaluation.baselines.markov import Markov
from keek_training.evaluation.baselines.popular import Popular
from keek_training.evaluation.baselines.protocol import Baseline
from keek_training.evaluation.baselines.trending import Trending

BASELINES: Final[Sequence[Baseline]] = (
    Popular(),
    Trending(),
    ItemKnn(),
    Ials(),
    Ease(),
    EaseRecency(),
    Markov(),
)
