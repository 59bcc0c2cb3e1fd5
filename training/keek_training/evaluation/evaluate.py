"""A run measured on targets, through what is served, beside the baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa

from keek_server.settings import Settings
from keek_training.datasets.dataset import Dataset
from keek_training.evaluation.baselines.protocol import Baseline, Training
from keek_training.evaluation.bootstrap import intervals
from keek_training.evaluation.cases import Cases, cases_of
from keek_training.evaluation.cold_start import ColdStart, Ranker, cold_starts
from keek_training.evaluation.histories import Histories
from keek_training.evaluation.metrics import PerUser, coverage, per_user, popularity_lift
from keek_training.evaluation.ranking import Ranked, rank
from keek_training.evaluation.served import ServedRankings, rank_served
from keek_training.evaluation.splits import Splitter, tuning_split
from keek_training.evaluation.targets import Targets
from keek_training.evaluation.tuning import Tuned, tune
from keek_training.features import user_sequences
from keek_training.publishing.source import TowerSource

MODEL: Final = "model"
WITHIN: Final = 0.01
"""Of exact search, relative: how far recall@10 and NDCG@10 through the index may be off."""

_APART: Final = ("recall@10", "recall@20", "ndcg@10")
_COMPARED: Final = ("recall@10", "ndcg@10")
_DIGITS: Final = 5


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Rankings of the same requests by the model and by baselines."""

    cases: Cases
    rankings: Mapping[str, Ranked]
    """By name; the model's is MODEL, as it is served."""
    tuned: Sequence[Tuned]
    left_out: Mapping[str, str]
    """Baselines that were not run, and why."""
    served: ServedRankings | None
    cold: Sequence[ColdStart]
    """The same rankings of users as if they were new."""
    seed: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        figures = {name: self.figures(name) for name in self.rankings}
        result: dict[str, Any] = {
            "users": len(self.cases),
            "targets": len(self.cases.targets.videos),
            "videos": len(self.cases.video_ids),
            "new_users": int(self.cases.is_new_user.sum()),
            "new_video_targets": int(self._is_new_target().sum()),
            **self.cases.notes,
            **figures,
            "tuned": {own.baseline.name: dict(own.parameters) for own in self.tuned},
        }
        if self.left_out:
            result["left_out"] = dict(self.left_out)
        if self.served is not None:
            others = [name for name in self.rankings if name != MODEL]
            result["model_less_baseline"] = {name: self._difference(name) for name in others}
            result["index"] = self.index_figures(self.served)
        result["cold_start"] = {f"history_{own.length}": self._cold_figures(own) for own in self.cold}
        return result

    def _cold_figures(self, cold: ColdStart) -> dict[str, Any]:
        """How good each ranking is with so little known, and with all that is known of the same users."""
        figures: dict[str, Any] = {"users": len(cold.cases)}
        for name in self.rankings:
            own, whole = (per_user(r[name], cold.cases.targets) for r in (cold.rankings, cold.whole))
            means, ends = self._means(own, _COMPARED)
            figures[name] = {**means, "intervals": ends, "whole_history": self._means(whole, _COMPARED)[0]}
        return figures

    def figures(self, name: str) -> dict[str, Any]:
        """All metrics of one ranking, with their 95 % intervals."""
        ranked, cases = self.rankings[name], self.cases
        means, ends = self._means(per_user(ranked, cases.targets))
        for part, own in self._parts(ranked).items():
            more, more_ends = self._means(own, _APART)
            means |= {f"{part}_{metric}": value for metric, value in more.items()}
            ends |= {f"{part}_{metric}": value for metric, value in more_ends.items()}
        return {
            **means,
            "coverage@10": round(coverage(ranked, 10, len(cases.video_ids)), _DIGITS),
            "popularity_lift@10": _rounded(popularity_lift(ranked, 10, cases)),
            "intervals": ends,
        }

    def index_figures(self, served: ServedRankings) -> dict[str, Any]:
        """How near what is served comes to exact search."""
        found, exact = (per_user(own, self.cases.targets) for own in (served.served, served.exact))
        values = {name: (found.values[name].mean(), exact.values[name].mean()) for name in _COMPARED}
        off = max(abs(own - other) / other if other else abs(own) for own, other in values.values())
        same = [
            np.isin(a, b).mean() for a, b in zip(served.served[:, :10], served.exact[:, :10], strict=True)
        ]
        return {
            "kind": served.index.report.kind,
            "recall_at_100": round(served.index.report.recall_at_100, _DIGITS),
            "exact": {name: round(float(other), _DIGITS) for name, (_, other) in values.items()},
            "relative_difference": round(float(off), 6),
            "same_top_10": round(float(np.mean(same)), _DIGITS),
            "within_1_percent": bool(off <= WITHIN),
        }

    def _parts(self, ranked: Ranked) -> dict[str, PerUser]:
        """New videos among the targets, and new users, each alone."""
        targets = self.cases.targets
        return {
            "new_videos": per_user(ranked, targets.where(self._is_new_target())),
            "new_users": per_user(ranked, targets.where(self.cases.is_new_user[targets.cases])),
        }

    def _is_new_target(self) -> Any:
        videos = self.cases.targets.videos
        # One that the catalogue lacks is new, too.
        return (videos < 0) | self.cases.is_new_video[videos]

    def _means(
        self, own: PerUser, names: Sequence[str] = ()
    ) -> tuple[dict[str, float | None], dict[str, list[float] | None]]:
        names = names or list(own.values)
        if not len(own.cases):
            return dict.fromkeys(names), dict.fromkeys(names)
        values = np.stack([own.values[name] for name in names], axis=1)
        means = values.mean(axis=0).round(_DIGITS).tolist()
        ends = intervals(values, self.seed).round(_DIGITS).T.tolist()
        return dict(zip(names, means, strict=True)), dict(zip(names, ends, strict=True))

    def _difference(self, name: str) -> dict[str, Any]:
        """Of the model and a baseline on the same users: its interval is narrower than theirs."""
        model, other = (per_user(self.rankings[own], self.cases.targets) for own in (MODEL, name))
        values = {metric: model.values[metric] - other.values[metric] for metric in _COMPARED}
        means, ends = self._means(PerUser(model.cases, values))
        return {**means, "intervals": ends}


def evaluate(
    training: Dataset,
    targets: Targets,
    *,
    source: TowerSource | None,
    baselines: Sequence[Baseline],
    settings: Settings,
    history: pa.Table | None = None,
    tuning: Splitter | None = None,
    seed: int = 1,
) -> Evaluation:
    """Ranks all videos for every user of the targets.

    Args:
        training: What was trained on.
        targets: What users turned to.
        source: The exported towers; None measures the baselines alone.
        baselines: Fitted to the training, and tuned on a part of it.
        settings: How the index is built.
        history: What is known of users beside the training, INTERACTION_SCHEMA.
        tuning: Makes that part; `tuning_split` by default.
        seed: Of whatever is drawn.

    Raises:
        SetupError: When no target is left, a tower cannot be loaded, or there is nothing to tune on.
    """
    cases = cases_of(training, targets, history)
    rankings: dict[str, Ranked] = {}
    rankers: dict[str, Ranker] = {}
    served = None
    if source is not None:
        served = rank_served(cases, source, training, settings)
        rankings[MODEL], rankers[MODEL] = served.served, served.again
    count = training.videos.num_rows
    able = [own for own in baselines if own.most_videos is None or count <= own.most_videos]
    tuned = _tuned(able, training, targets, tuning, seed) if able else []
    known = _training(training)
    for own in tuned:
        ranker = partial(rank, score=own.baseline.fit(known, own.parameters))
        rankings[own.baseline.name], rankers[own.baseline.name] = ranker(cases), ranker
    left_out = {
        own.name: f"{count} videos are more than {own.most_videos}" for own in baselines if own not in able
    }
    cold = cold_starts(cases, rankings, rankers, seed)
    return Evaluation(cases, rankings, tuned, left_out, served, cold, seed)


def _tuned(
    baselines: Sequence[Baseline],
    training: Dataset,
    targets: Targets,
    tuning: Splitter | None,
    seed: int,
) -> list[Tuned]:
    part = tuning(training) if tuning else tuning_split(training, targets)
    return tune(baselines, _training(part.training), cases_of(part.training, part.targets), seed)


def _training(dataset: Dataset) -> Training:
    video_ids = dataset.videos["video_id"].combine_chunks()
    return Training(Histories.of(user_sequences(dataset.interactions, video_ids), len(video_ids)))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)
