"""Releases, plans and the fleet as the messages of `keek.v1`."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from keek.v1 import release_service_pb2 as pb
from keek_server.feed.types import FeedPage
from keek_server.releases.diff import FeedDiff
from keek_server.releases.fleet import Rollout, ServerStatus
from keek_server.releases.manifest import GateResult
from keek_server.releases.plan import Plan
from keek_server.releases.registry import Registered
from keek_server.rpc.feed import encode_degradation, encode_item

_INT64_MAX = 2**63 - 1


def encode_release(registered: Registered) -> pb.Release:
    """What its manifest says; 0 or empty where it was written by a Keek that did not say it."""
    manifest = registered.manifest
    clip = _part(manifest, "clip")
    release = pb.Release(
        release_id=registered.release_id,
        state=registered.state.value,  # type: ignore[arg-type]  # numbered alike
        source=_text(manifest, "source"),
        user_tower_version=_number(_part(manifest, "user_tower"), "version"),
        video_tower_version=_number(_part(manifest, "video_tower"), "version"),
        clip_image_version=_number(_part(clip, "image"), "version"),
        clip_text_version=_number(_part(clip, "text"), "version"),
        ranker_version=_number(_part(manifest, "ranker"), "version"),
        dimension=_number(manifest, "dimension"),
        video_count=_number(_part(manifest, "index"), "videos"),
        gates=_gates(manifest),
        forced_reason=_text(manifest, "forced_reason"),
    )
    release.create_time.FromMicroseconds(registered.create_time_us)
    return release


def encode_rollout(rollout: Rollout) -> pb.Rollout:
    """A plan, and how far the fleet is with it."""
    return pb.Rollout(
        plan=_encode_plan(rollout.plan),
        servers=map(_encode_server, rollout.servers),
        converged=rollout.converged,
        pending_servers=[server.name for server in rollout.pending],
    )


def encode_diff(diff: FeedDiff) -> pb.FeedDiff:
    """One user's feeds."""
    return pb.FeedDiff(
        user_id=diff.user_id,
        items=_items(diff.page),
        other_items=_items(diff.other_page),
        overlap=diff.overlap,
        degradations=map(encode_degradation, diff.page.context.degradations),
        other_degradations=map(encode_degradation, diff.other_page.context.degradations),
    )


def _items(page: FeedPage) -> list[Any]:
    release_id = page.context.serving.release.id
    return [encode_item(item, release_id) for item in page.selection.items]


def _encode_plan(plan: Plan) -> pb.ReleasePlan:
    message = pb.ReleasePlan(
        plan_seq=plan.seq, release_id=plan.release_id, reason=plan.reason, is_rollback=plan.is_rollback
    )
    message.create_time.FromMicroseconds(plan.time_us)
    if plan.trial is not None:
        trial = plan.trial
        message.trial.release_id = trial.release_id
        message.trial.kind = trial.kind.value  # type: ignore[assignment]  # numbered alike
        message.trial.percent = trial.percent
    return message


def _encode_server(server: ServerStatus) -> pb.ReleaseServer:
    message = pb.ReleaseServer(
        server_id=server.server_id,
        name=server.name,
        plan_seq=server.plan_seq,
        release_id=server.release_id,
        trial_release_id=server.trial_release_id,
        problem=server.problem,
    )
    message.start_time.FromMicroseconds(server.start_time_us)
    message.heartbeat_time.FromMicroseconds(server.heartbeat_time_us)
    for release_id, figures in server.figures.items():
        message.figures.add(
            release_id=release_id,
            feed_count=figures.feed_count,
            error_count=figures.error_count,
            empty_count=figures.empty_count,
            compared_count=figures.compared_count,
            mean_overlap=figures.mean_overlap,
        )
    return message


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = values.get(name)
    return part if isinstance(part, Mapping) else {}


def _number(values: Mapping[str, Any], name: str) -> int:
    number = values.get(name)
    return number if isinstance(number, int) and 0 <= number <= _INT64_MAX else 0


def _text(values: Mapping[str, Any], name: str) -> str:
    text = values.get(name)
    return text if isinstance(text, str) else ""


def _gates(manifest: Mapping[str, Any]) -> list[pb.GateResult]:
    entries = manifest.get("gates")
    return [gate for entry in entries if (gate := _gate(entry))] if isinstance(entries, list) else []


def _gate(entry: object) -> pb.GateResult | None:
    try:
        return pb.GateResult(**GateResult.model_validate(entry).model_dump())
    except ValidationError:
        return None
