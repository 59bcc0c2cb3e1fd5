"""The limit on concurrent calls, before a simulated server: one queue, known service times, no real time."""

import heapq
import random
import statistics
from dataclasses import dataclass, field

from keek_server.rpc.limits import GradientLimit

METHOD = "/keek.v1.FeedService/ListFeed"
SERVICE_S = 0.002
"""What a call keeps the simulated server's only processor busy for."""
WAIT_S = 0.003
"""What it waits for others beside that, as for Redis."""
CAPACITY = 1.0 / SERVICE_S


@dataclass
class Server:
    """Answers one call after the other."""

    limit: GradientLimit = field(default_factory=lambda: GradientLimit(minimum=4, maximum=256, initial=12))
    now: float = 0.0
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    _free: float = 0.0
    _ends: list[tuple[float, float, str]] = field(default_factory=list)

    def load(
        self, calls_per_s: float, seconds: float, *, slower: float = 1.0, method: str = METHOD
    ) -> tuple[list[float], int]:
        """Calls that arrive by chance; the latencies of those that were let in, and how many were not."""
        latencies, refused = [], 0
        until = self.now + seconds
        while self.now < until:
            self.now += self.chance.expovariate(calls_per_s)
            self._finish()
            if len(self._ends) >= self.limit.value:
                refused += 1
                continue
            self._free = max(self.now, self._free) + SERVICE_S * slower * self.chance.uniform(0.5, 1.5)
            end = self._free + WAIT_S
            heapq.heappush(self._ends, (end, self.now, method))
            latencies.append(end - self.now)
        return latencies, refused

    def _finish(self) -> None:
        while self._ends and self._ends[0][0] <= self.now:
            end, began, method = self._ends[0]
            self.limit.sample(method, end - began, len(self._ends), end)
            heapq.heappop(self._ends)


def p99(latencies: list[float]) -> float:
    return statistics.quantiles(latencies, n=100)[98]


def test_three_times_the_capacity_costs_no_goodput_and_little_latency() -> None:
    server = Server()
    unloaded, refused = server.load(CAPACITY / 4, 30)
    assert refused == 0
    accepted, refused = server.load(CAPACITY * 3, 20)
    assert len(accepted) / 20 > 0.9 * CAPACITY
    assert refused > 15 * CAPACITY
    assert p99(accepted) < 2 * p99(unloaded)


def test_a_long_overload_is_not_taken_for_normal() -> None:
    server = Server()
    server.load(CAPACITY / 4, 30)
    server.load(CAPACITY * 3, 5)
    soon = server.limit.value
    server.load(CAPACITY * 3, 120)
    assert server.limit.value < soon + 3


def test_a_pause_of_the_whole_machine_is_no_overload() -> None:
    limit = GradientLimit(minimum=3, maximum=200, initial=20)
    for step in range(100):
        limit.sample(METHOD, 0.004, 1, step * 0.01)
    # For 150 ms nothing ran; then all that had come meanwhile ended within a few milliseconds.
    for waiting in range(15, 0, -1):
        limit.sample(METHOD, 0.01 * waiting, waiting, 1.15 + 0.0005 * (15 - waiting))
    assert limit.value > 15


def test_half_the_capacity_is_not_refused_even_right_after_an_overload() -> None:
    server = Server()
    server.load(CAPACITY / 4, 30)
    server.load(CAPACITY * 3, 20)
    server.load(CAPACITY / 2, 2)
    accepted, refused = server.load(CAPACITY / 2, 60)
    assert refused < 0.002 * len(accepted)


def test_it_shrinks_when_calls_become_slow_and_grows_back() -> None:
    server = Server()
    server.load(CAPACITY / 2, 30)
    before = server.limit.value
    server.load(CAPACITY / 2, 10, slower=4.0)
    assert server.limit.value < before / 2
    server.load(CAPACITY / 2, 20)
    assert server.limit.value > 0.5 * before


def test_a_server_that_stays_slower_is_used_as_it_is_in_the_end() -> None:
    server = Server()
    server.load(CAPACITY / 4, 30)
    accepted, _ = server.load(CAPACITY, 60, slower=3.0)
    assert len(accepted) / 60 > 0.85 * CAPACITY / 3


def test_slow_methods_beside_fast_ones_are_no_overload() -> None:
    limit = GradientLimit(minimum=3, maximum=200, initial=20)
    now = 0.0
    for _ in range(2000):
        now += 0.01
        limit.sample(METHOD, 0.004, 15, now)
        limit.sample("/keek.v1.SearchService/SearchVideos", 0.4, 15, now)
    assert limit.value > 20


def test_it_stays_between_its_bounds() -> None:
    limit = GradientLimit(minimum=3, maximum=30, initial=1000)
    assert limit.value == 30
    for step in range(500):
        limit.sample(METHOD, 0.01 * (1 + step), 30, step * 0.01)
    assert 3 <= limit.value < 5
    for step in range(500):
        limit.sample(METHOD, 0.001, 30, 5 + step * 0.01)
    assert limit.value == 30


def test_it_does_not_grow_while_nobody_uses_it() -> None:
    limit = GradientLimit(minimum=3, maximum=200, initial=20)
    for step in range(500):
        limit.sample(METHOD, 0.004, 2, step * 0.01)
    assert limit.value == 20


def test_what_calls_take_is_the_median_of_the_latest_and_is_forgotten() -> None:
    limit = GradientLimit(minimum=3, maximum=200, initial=20)
    for step in range(4):
        assert limit.typical_s(METHOD, step * 0.01) is None
        limit.sample(METHOD, 2.0, 1, step * 0.01)
    for step in range(30):
        limit.sample(METHOD, (0.01, 0.02, 0.5)[step % 3], 1, step * 0.01)
    assert limit.typical_s(METHOD, 1.0) == 0.02
    assert limit.typical_s(METHOD, 3.0) is None
