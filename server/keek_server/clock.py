"""Wall-clock time, in the unit that is stored."""

import time


def now_us() -> int:
    """Microseconds since the Unix epoch."""
    return time.time_ns() // 1000
