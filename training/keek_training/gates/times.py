"""What the times of a tower's calls say."""

from collections.abc import Sequence


def undisturbed_ms(times_ms: Sequence[float]) -> float:
    """The milliseconds that a call takes by itself: a tenth of them take no longer.

    Whatever else the machine does makes calls longer, perhaps most of them, and none shorter.
    """
    return sorted(times_ms)[len(times_ms) // 10]
