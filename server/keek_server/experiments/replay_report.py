"""What a replay found out, for programs and for people."""

import math
from typing import Any, Final

from keek_server.experiments.offpolicy import Earned, Replay
from keek_server.experiments.release_replay import ReleaseReplay
from keek_server.experiments.report_text import aligned, number, percent

Found = dict[str, Any]
"""One JSON object; what is not known is None."""

ENOUGH_SUPPORT: Final = 0.8
"""Share of a release's choices that the log should have been able to show."""


def replay_found(own: Replay) -> Found:
    """A replay as an object that can be written as JSON."""
    estimators = {"ips": own.ips, "snips": own.snips, "dr": own.dr}
    return {
        "logged": _known(own.logged.value),
        "estimators": [
            {"name": name, **_earned(earned)} for name, earned in estimators.items() if earned is not None
        ],
        "slot_count": own.slot_count,
        "left_out_share": own.left_out_share,
        "effective_slot_count": _known(own.effective_slot_count),
        "max_weight": own.max_weight,
        "mean_weight": own.mean_weight,
    }


def replay_text(found: Found, what: str) -> str:
    """Lines of text of what `replay_found` made.

    Args:
        found: The object.
        what: The target policy, as `mix 60/40`.
    """
    rows = [
        (
            own["name"],
            *(number(own[name]) for name in ("value", "low", "high")),
            *(percent(own[name]) for name in ("lift", "lift_low", "lift_high")),
        )
        for own in found["estimators"]
    ]
    head = (
        f"{what}, replayed from {found['slot_count']:,} slots ({found['left_out_share']:.1%} left out);"
        f" as they were served they earned {number(found['logged'])} each"
    )
    foot = (
        f"they say as much as {number(found['effective_slot_count'])} slots of that policy; weights are"
        f" {found['mean_weight']:.3g} in the mean, which should be 1, and {found['max_weight']:.3g} at most"
    )
    table = aligned(("BY", "A SLOT", "LOW", "HIGH", "LIFT", "LOW", "HIGH"), rows)
    return "\n".join([head, *table, foot]) + "\n"


def release_found(own: ReleaseReplay, made_before_share: float) -> Found:
    """The same of a release.

    Args:
        own: The replay.
        made_before_share: Share of the feeds that were served before the release was made.
    """
    return {
        **replay_found(own.replay),
        "support": own.support,
        "differing_share": own.differing_share,
        "feed_count": own.feed_count,
        "served_before_release_share": made_before_share,
    }


def release_text(found: Found, release_id: str) -> str:
    """Lines of text of what `release_found` made."""
    differing, support = found["differing_share"], found["support"]
    text = (
        f"in {differing:.1%} of the personalised slots it would show others than the log; the log could have"
        f" shown {support:.1%} of what it would choose"
    )
    lines = [text]
    if support < ENOUGH_SUPPORT:
        lines.append(
            "WARNING: these estimates are of the choices that the log could have shown; the others may earn"
            " anything"
        )
    if (before := found["served_before_release_share"]) > 0:
        lines.append(
            f"WARNING: {before:.1%} of these feeds are older than the release: if it was trained on what they"
            " led to, it knows the answers; take feeds since it was made"
        )
    return replay_text(found, f"release {release_id}") + "\n".join(lines) + "\n"


def _earned(own: Earned) -> Found:
    return {
        "value": _known(own.estimate.value),
        "low": _known(own.interval.low),
        "high": _known(own.interval.high),
        "lift": _known(own.difference.relative),
        "lift_low": _known(own.lift_interval.low),
        "lift_high": _known(own.lift_interval.high),
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
