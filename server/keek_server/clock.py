"""Wall-clock time, in the unit that is stored, and as people write it."""

import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)
_MICROSECOND = timedelta(microseconds=1)


def now_us() -> int:
    """Microseconds since the Unix epoch."""
    return time.time_ns() // 1000


def iso_us(text: str) -> int | None:
    """Microseconds since the epoch from ISO 8601, in UTC where it names no zone; None if it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def us_iso(time_us: int) -> str:
    """ISO 8601 in UTC, always with microseconds: `2026-01-31T12:00:00.000000Z`."""
    return (_NAIVE_EPOCH + timedelta(microseconds=time_us)).isoformat(timespec="microseconds") + "Z"
