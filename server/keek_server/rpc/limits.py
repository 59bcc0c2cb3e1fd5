"""How many calls may be under way at the same time: as many as do not make each other much slower.

The limit follows the gradient of latencies, as Gradient2Limit does in Netflix's concurrency-limits
(github.com/Netflix/concurrency-limits, `Gradient2Limit.java`):

    gradient = max(0.5, min(1, long / short))
    limit    = (1 - smoothing) * limit + smoothing * (gradient * limit + sqrt(limit))

`long` is what a call takes when nothing waits, `short` what calls take now, and sqrt(limit) is the queue that
is allowed. Four things differ:

- Calls of different methods share one limit, so each method has its own `long`, and `short / long` is
  averaged over all of them.
- There the long term is 600 samples, so it learns within seconds that an overloaded server is slow, takes
  that for normal, and lets the limit grow. Here it is a time, and a call that found the limit reached counts
  for little of it.
- Smoothing is by time as well, so that it is the same at every rate.
- The limit falls only when there has been no room (half of it) for a while: bursts end by themselves.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

_SMOOTHING_S: Final = 0.05
"""The time constant of the limit: calls that a pause of the whole machine made slow all end at once, and
count for little together."""
_SMOOTHING_STEP_S: Final = 0.02
_BURST_S: Final = 0.04
"""Where there was room so shortly before, it was a burst, and no reason for a smaller limit."""
_LEAST_GRADIENT: Final = 0.5
_SHORT: Final = 0.1
"""What one call counts for in the short term."""
_LONG_S: Final = 10.0
"""The time constant of the long term while there is room."""
_LONG_FALLING_S: Final = 5.0
"""The same for calls that took less."""
_LONG_LOADED_S: Final = 600.0
"""The same while there is none: a server that has really become slower is not shut out for ever."""
_STEP_S: Final = 0.1
"""The most time that one call stands for, however long the last one is ago."""
_LEAST_RTT_S: Final = 1e-6
_LATEST: Final = 21
"""Calls whose median is what such calls take at present."""
_FEW: Final = 5
"""Fewer say nothing: the first one finds everything cold."""
_FRESH_S: Final = 1.0
"""Where none has ended for so long, calls are let in to find out."""


@dataclass(slots=True)
class _Latency:
    """What calls of one method take, in seconds."""

    long_s: float
    sampled: float
    """When the latest call ended."""
    latest_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LATEST))

    def add(self, rtt_s: float, now: float, time_constant_s: float) -> None:
        self.latest_s.append(rtt_s)
        if len(self.latest_s) < _LATEST:
            self.long_s = self.median_s()  # the first ones find everything cold
        else:
            since_s = min(now - self.sampled, _STEP_S)
            if rtt_s < self.long_s:
                time_constant_s = _LONG_FALLING_S
            self.long_s += (rtt_s - self.long_s) * (1.0 - math.exp(-since_s / time_constant_s))
        self.sampled = now

    def median_s(self) -> float:
        """Of the latest calls."""
        return sorted(self.latest_s)[len(self.latest_s) // 2]


class GradientLimit:
    """Finds the limit by what finished calls took."""

    def __init__(self, *, minimum: float, maximum: float, initial: float) -> None:
        """
        Args:
            minimum: What it never falls below, calls.
            maximum: What it never exceeds.
            initial: What it begins with.
        """
        self._minimum = minimum
        self.maximum = maximum
        """What it never exceeds."""
        self.value = min(max(initial, minimum), maximum)
        """Calls that may be under way."""
        self._slowness = 1.0
        self._sampled = 0.0
        self._had_room = 0.0
        self._latencies: dict[str, _Latency] = {}

    def sample(self, method: str, rtt_s: float, in_flight: int, now: float) -> None:
        """Learns from a call that has ended.

        Args:
            method: Its name.
            rtt_s: What it took, seconds.
            in_flight: Calls that were under way when it ended, itself included.
            now: Seconds, of any steady clock.
        """
        rtt_s = max(rtt_s, _LEAST_RTT_S)
        latency = self._latencies.get(method)
        if latency is None:
            latency = self._latencies[method] = _Latency(rtt_s, now)
        room = in_flight < self.value / 2
        latency.add(rtt_s, now, _LONG_S if room else _LONG_LOADED_S)
        self._slowness += _SHORT * (rtt_s / latency.long_s - self._slowness)
        if not room:
            gradient = max(_LEAST_GRADIENT, min(1.0, 1.0 / self._slowness))
            wanted = gradient * self.value + math.sqrt(self.value)
            smoothing = 1.0 - math.exp(-min(now - self._sampled, _SMOOTHING_STEP_S) / _SMOOTHING_S)
            value = self.value + smoothing * (wanted - self.value)
            if value > self.value or now - self._had_room > _BURST_S:
                self.value = min(max(value, self._minimum), self.maximum)
        else:
            self._had_room = now
        self._sampled = now

    def typical_s(self, method: str, now: float) -> float | None:
        """The median of what the latest calls of a method took; None while too few have ended of late."""
        latency = self._latencies.get(method)
        if latency is None or now - latency.sampled > _FRESH_S or len(latency.latest_s) < _FEW:
            return None
        return latency.median_s()
