"""Interactions as the prototype wrote them: the lines of `interaction_log.csv`."""

import re

from keek_server.clock import us_iso
from keek_server.interactions.kinds import InteractionKind

CSV_HEADER = "user_id,video_id,action,timestamp\n"
CSV_HEADER_WATCHED = "user_id,video_id,action,timestamp,watched_s\n"
"""Of `csv_line_watched`."""

ACTIONS: dict[int, str] = {kind: kind.name.lower() for kind in InteractionKind}
"""How each kind is spelled in files."""

# The csv module would leave a lone carriage return bare where lines end with a newline alone.
_NEEDS_QUOTES = re.compile(r'[",\r\n]')


def csv_line(user_id: str, video_id: str, kind: int, event_time_us: int) -> str:
    """One interaction as a line, quoted as in RFC 4180 where it must be."""
    return f"{_field(user_id)},{_field(video_id)},{ACTIONS[kind]},{us_iso(event_time_us)}\n"


def csv_line_watched(
    user_id: str, video_id: str, kind: int, event_time_us: int, watched_ms: int | None
) -> str:
    """The same with how long the video was watched, in seconds; empty when unknown."""
    watched_s = "" if watched_ms is None else watched_ms / 1000
    return f"{csv_line(user_id, video_id, kind, event_time_us)[:-1]},{watched_s}\n"


def _field(text: str) -> str:
    if _NEEDS_QUOTES.search(text) is None:
        return text
    escaped = text.replace('"', '""')
    return f'"{escaped}"'
