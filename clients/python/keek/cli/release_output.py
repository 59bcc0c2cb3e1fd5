"""How releases, plans and feeds side by side look."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from keek.cli.output import Cell, Table, note_degradations, print_json, printable, source_name
from keek.v1.feed_service_pb2 import FeedItem
from keek.v1.release_service_pb2 import (
    FeedDiff,
    GateResult,
    Release,
    ReleasePlan,
    ReleaseServer,
    ReleaseState,
    Rollout,
    Trial,
    TrialKind,
)


class ReleaseTable:
    """Releases, one a row."""

    def __init__(self) -> None:
        # Wide enough for what later pages may bring.
        self._table: Final = Table(
            "RELEASE", "STATE".ljust(len("refused")), "SERVES", "CREATED", "VIDEOS", "GATES", "SOURCE"
        )

    def add(self, releases: Iterable[Release], plan: ReleasePlan) -> None:
        """Prints releases, with a mark at those that the plan names."""
        self._table.add(
            (
                release.release_id,
                _state(release.state),
                _serves(release.release_id, plan),
                _time(release.create_time),
                release.video_count,
                _gates(release),
                release.source,
            )
            for release in releases
        )


def print_release(release: Release) -> None:
    """One release, and what its gates measured."""
    towers = f"user {release.user_tower_version}, video {release.video_tower_version}"
    clip = f"image {release.clip_image_version}, text {release.clip_text_version}"
    lines = {
        "release": release.release_id,
        "state": _state(release.state),
        "created": _time(release.create_time),
        "source": release.source,
        "towers": towers,
        "clip": clip if release.clip_image_version else "(none)",
        "ranker": str(release.ranker_version or "(none)"),
        "videos": str(release.video_count),
        "gates": _gates(release),
    }
    if release.forced_reason:
        lines["forced"] = release.forced_reason
    for name, value in lines.items():
        print(f"{name:8} {printable(value)}".rstrip(), flush=True)
    if release.gates:
        print()
    Table("GATE", "PASSED", "VALUE", "BOUND", "DETAIL").add(map(_gate_row, release.gates))


def print_rollout(rollout: Rollout) -> None:
    """What is to be served, and which server does so."""
    print(printable(_plan(rollout.plan)), flush=True)
    if not rollout.servers:
        print("no server says that it lives", flush=True)
    Table("SERVER", "RELEASE", "TRIAL", "PLAN", "STATUS").add(
        (
            server.name,
            server.release_id,
            server.trial_release_id,
            server.plan_seq,
            _status(server, rollout.plan),
        )
        for server in rollout.servers
    )
    figures = [(server.name, entry) for server in rollout.servers for entry in server.figures]
    if figures:
        print()
    Table("SERVER", "RELEASE", "FEEDS", "ERRORS", "EMPTY", "COMPARED", "OVERLAP").add(
        (
            name,
            entry.release_id,
            entry.feed_count,
            entry.error_count,
            entry.empty_count,
            entry.compared_count,
            f"{entry.mean_overlap:.3f}" if entry.compared_count else "",
        )
        for name, entry in figures
    )


class Diffs:
    """Feeds of two releases side by side, and in the end how much they share."""

    def __init__(self, release_id: str, other_release_id: str, *, as_json: bool) -> None:
        self._names: Final = (release_id, other_release_id)
        self._as_json: Final = as_json
        self._overlaps: list[float] = []

    def add(self, diffs: Iterable[FeedDiff]) -> None:
        """Prints one user's feeds after the other's."""
        for diff in diffs:
            if self._as_json:
                print_json(diff)
            else:
                self._print(diff)
            self._overlaps.append(diff.overlap)

    def close(self) -> None:
        """Prints the mean."""
        count = len(self._overlaps)
        mean = sum(self._overlaps) / count if count else None
        if self._as_json:
            print_json({"mean_overlap": mean, "user_count": count})
        elif mean is not None:
            print(f"mean overlap {mean:.3f} over {count} users", flush=True)

    def _print(self, diff: FeedDiff) -> None:
        print(f"user {printable(diff.user_id)}, overlap {diff.overlap:.3f}", flush=True)
        ours, theirs = self._names
        table = Table("#", ours, "SOURCE", "BOTH", theirs, "SOURCE", "BOTH")
        table.add(_side_by_side(diff.items, diff.other_items))
        note_degradations(diff.degradations)
        note_degradations(diff.other_degradations)
        print()


def _side_by_side(items: Sequence[FeedItem], others: Sequence[FeedItem]) -> Iterator[Sequence[Cell]]:
    """Place by place; a video that both have is marked with its place in the other feed."""
    places = {item.video_id: f"={place}" for place, item in enumerate(items, 1)}
    other_places = {item.video_id: f"={place}" for place, item in enumerate(others, 1)}
    for place, (item, other) in enumerate(itertools.zip_longest(items, others), 1):
        yield place, *_half(item, other_places), *_half(other, places)


def _half(item: FeedItem | None, places: Mapping[str, str]) -> tuple[str, str, str]:
    if item is None:
        return "", "", ""
    return item.video_id, source_name(item.source), places.get(item.video_id, "")


def _state(state: ReleaseState.ValueType) -> str:
    if state not in ReleaseState.values():
        return str(state)
    return ReleaseState.Name(state).removeprefix("RELEASE_STATE_").lower()


def _serves(release_id: str, plan: ReleasePlan) -> str:
    if release_id == plan.release_id:
        return "active"
    return _trial(plan.trial) if release_id == plan.trial.release_id else ""


def _trial(trial: Trial) -> str:
    known = trial.kind in TrialKind.values()
    kind = TrialKind.Name(trial.kind).removeprefix("TRIAL_KIND_").lower() if known else str(trial.kind)
    return f"{kind} {trial.percent:g} %"


def _gates(release: Release) -> str:
    refused = [gate.name for gate in release.gates if not gate.passed]
    summary = f"{len(release.gates) - len(refused)} of {len(release.gates)}" if release.gates else ""
    if refused:
        summary += f", not {', '.join(refused)}"
    return f"{summary} (forced)" if release.forced_reason else summary


def _gate_row(gate: GateResult) -> tuple[str, str, str, str, str]:
    value = f"{gate.value:.6g}" if gate.HasField("value") else "(none)"
    passed = "yes" if gate.passed else "no"
    return gate.name, passed, value, f"{gate.comparison} {gate.bound:.6g}", gate.detail


def _plan(plan: ReleasePlan) -> str:
    what = f"plan {plan.plan_seq}: {plan.release_id} serves"
    if plan.HasField("trial"):
        what += f", {plan.trial.release_id} is {_trial(plan.trial)}"
    what += f", since {_time(plan.create_time)}"
    if plan.is_rollback:
        what += ", rolled back"
    return f"{what}: {plan.reason}" if plan.reason else what


def _status(server: ReleaseServer, plan: ReleasePlan) -> str:
    if server.problem:
        return server.problem
    return "follows" if server.plan_seq < plan.plan_seq else "ok"


def _time(time: Timestamp) -> str:
    return time.ToJsonString()
