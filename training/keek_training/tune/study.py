"""The search: trials by a tree of Parzen estimators (Optuna), those that lag behind cut short.

The state lies in SQLite, so that a search goes on where it was stopped. Every trial trains on the training
part of a split and is judged, after each epoch, by NDCG@10 on the targets of that split, all videos ranked.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from keek_server.errors import SetupError
from keek_server.towers.features import Float32Array, Tensors
from keek_training.backend import keras
from keek_training.config import TrainConfig
from keek_training.evaluation.cases import Cases, cases_of
from keek_training.evaluation.metrics import per_user
from keek_training.evaluation.ranking import rank_by_vectors
from keek_training.evaluation.served import Tower, corpus_of, user_vectors
from keek_training.evaluation.splits import Split
from keek_training.train import train
from keek_training.trained import Trained
from keek_training.tune.space import Space, with_values

log = logging.getLogger(__name__)

JUDGED_BY: Final = "ndcg@10"
BEST_EPOCH: Final = "best_epoch"

_ALSO: Final = "recall@10"
_MOST_CASES: Final = 3000
_UNPRUNED: Final = 5
"""Trials that come to their end before any is cut short."""
_UNPRUNED_EPOCHS: Final = 1


@dataclass(frozen=True, slots=True)
class Budget:
    """When the search ends, counted from its start; at least one is given."""

    trials: int | None = None
    seconds: float | None = None


def search(
    split: Split, config: TrainConfig, space: Space, file: Path, *, facts: Mapping[str, Any], budget: Budget
) -> optuna.Study:
    """Makes trials until the budget is spent.

    Args:
        split: What trials train on, and are judged by.
        config: What the space does not name; its seed also draws the trials. The first trial is it, where it
            lies in the space.
        space: What is tried.
        file: The SQLite file of the study; a search that it holds goes on.
        facts: What the study is about, besides: a search of something else is not mixed with it.
        budget: Of this call.

    Raises:
        SetupError: When the file holds another search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _open(file, config, space, facts)
    deadline = None if budget.seconds is None else time.monotonic() + budget.seconds
    cases = _cases(split, config.seed)

    def objective(trial: optuna.Trial) -> float:
        return _Trial(trial, split, cases, deadline).run(with_values(config, space.suggest(trial)))

    study.optimize(
        objective,
        n_trials=budget.trials,
        timeout=budget.seconds,
        callbacks=[lambda _, trial: log.info("%s", _describe(trial))],
    )
    return study


def _open(file: Path, config: TrainConfig, space: Space, facts: Mapping[str, Any]) -> optuna.Study:
    study = optuna.create_study(
        storage=f"sqlite:///{file}",
        study_name=file.stem,
        load_if_exists=True,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(_UNPRUNED, _UNPRUNED_EPOCHS),
    )
    about = json.loads(
        json.dumps({**facts, "config": config.model_dump(mode="json"), "space": space.model_dump()})
    )
    trials = study.get_trials(deepcopy=False)
    known = study.user_attrs
    if trials and (different := [name for name, value in about.items() if known.get(name) != value]):
        raise SetupError(f"{file} holds a search with another {different[0]}: name this one otherwise")
    if not trials:
        for name, value in about.items():
            study.set_user_attr(name, value)
        if own := space.values_of(config):
            study.enqueue_trial(own)
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            # Its process was killed; what it tried is tried again.
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
    # A search that goes on draws other trials than those it has made.
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(trials))
    return study


def _cases(split: Split, seed: int) -> Cases:
    """The requests that judge, of users of whom something is known; drawn where they are many."""
    cases = cases_of(split.training, split.targets)
    known = np.flatnonzero(~cases.is_new_user)
    if not len(known):
        raise SetupError("nothing is known of the users of the validation part: there is nothing to tune by")
    return cases.take(np.sort(np.random.default_rng(seed).permutation(known)[:_MOST_CASES]))


@dataclass(slots=True)
class _Trial:
    trial: optuna.Trial
    split: Split
    cases: Cases
    deadline: float | None
    """On the monotonic clock."""

    def run(self, config: TrainConfig) -> float:
        """Trains, and gives the best NDCG@10 of its epochs."""
        keras.utils.clear_session()
        started = time.monotonic()
        # The split holds the validation out already.
        config = config.model_copy(update={"validation_users": 0, "fit_epochs": None})
        trained = train(self.split.training, config, measure=self._measure)
        assert trained.best is not None
        self.trial.set_user_attr(BEST_EPOCH, trained.best.epoch)
        self.trial.set_user_attr(_ALSO, trained.best.validation[_ALSO])
        self.trial.set_user_attr("train_s", round(time.monotonic() - started, 1))
        return trained.best.validation[JUDGED_BY]

    def _measure(self, trained: Trained) -> dict[str, float]:
        model = trained.model
        corpus = corpus_of(self.split.training, _tower(model.video_tower))
        users = user_vectors(
            self.cases, corpus, _tower(model.user_tower), trained.config.towers.history_length
        )
        ranked = rank_by_vectors(self.cases, users, np.asarray(corpus.vectors))
        values = per_user(ranked, self.cases.targets).values
        found = {name: float(values[name].mean()) for name in (JUDGED_BY, _ALSO)}
        self.trial.report(found[JUDGED_BY], len(trained.history) + 1)
        if self.trial.should_prune():
            raise optuna.TrialPruned
        if self.deadline is not None and time.monotonic() > self.deadline:
            self.trial.set_user_attr("out_of_time", value=True)
            raise optuna.TrialPruned
        return found


def _tower(tower: Any) -> Tower:
    def answer(inputs: Tensors) -> Float32Array:
        vectors: Float32Array = tower.predict_on_batch(inputs)
        return vectors

    return answer


def _describe(trial: FrozenTrial) -> str:
    value = f"{JUDGED_BY} {trial.value:.4f}" if trial.value is not None else "no figure"
    return f"trial {trial.number} {trial.state.name.lower()}, {value}: {trial.params}"


def table(study: optuna.Study) -> str:
    """All trials as text, the best first."""
    trials = sorted(
        study.get_trials(deepcopy=False),
        key=lambda own: (own.state != TrialState.COMPLETE, -(own.value or 0), own.number),
    )
    names = sorted({name for own in trials for name in own.params})
    heads = ["trial", "state", JUDGED_BY, _ALSO, "epoch", "s", *names]
    rows = [heads, *([_cell(own, head) for head in heads] for own in trials)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return "\n".join("  ".join(map(str.rjust, row, widths)).rstrip() for row in rows)


def _cell(trial: FrozenTrial, head: str) -> str:
    own: dict[str, Any] = {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        JUDGED_BY: trial.value,
        _ALSO: trial.user_attrs.get(_ALSO),
        "epoch": trial.user_attrs.get(BEST_EPOCH),
        "s": trial.user_attrs.get("train_s"),
        **trial.params,
    }
    value = own.get(head)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
