"""How much of its processor time a file has taken, so that what is found by then can still be answered."""

import time
from collections.abc import Callable

THRIFTY = 0.5
"""Share after which no more is done than is needed."""
OVER = 0.75
"""Share after which what was found is drawn, and nothing more is looked for."""
FEWEST_FOUND = 0.25
"""Share of what is looked for that must be found when there is no time for all."""
_TRIED = 0.25
_DOUBT = 2.0


class CpuBudget:
    """Counts from now, and against the limit at whose end the process is killed."""

    def __init__(self, cpu_s: float, clock: Callable[[], float] = time.process_time) -> None:
        """
        Args:
            cpu_s: The limit.
            clock: Seconds of processor time.
        """
        self._clock = clock
        self._began_s = clock()
        self._cpu_s = cpu_s

    @property
    def spent(self) -> float:
        """Share of the limit."""
        return (self._clock() - self._began_s) / self._cpu_s


def is_hopeless(spent: float, done: float) -> bool:
    """Whether, going on like this, far too little will be done in time.

    Args:
        spent: Share of the limit.
        done: Share of the work.
    """
    return spent >= _TRIED and _DOUBT * done * OVER / spent < FEWEST_FOUND
