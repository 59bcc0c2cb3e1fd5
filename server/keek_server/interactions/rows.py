"""What the log is made of."""

from typing import NamedTuple

from keek_server.interactions.kinds import InteractionKind


class LoggedInteraction(NamedTuple):
    """One row of the log."""

    seq: int
    user_id: str
    video_id: str
    kind: InteractionKind
    event_time_us: int
    record_time_us: int
    region: str
    tags: tuple[str, ...]


def tail_of(row: LoggedInteraction) -> str:
    """What a row is recognised by, beside its sequence number, after a log was restored from a backup."""
    return str(row.record_time_us)
