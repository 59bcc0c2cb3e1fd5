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
