"""One run on one database: load, kills, verdict."""

import asyncio
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from benchmarks.arena import Arena, open_arena
from benchmarks.torture.kills import Killer
from benchmarks.torture.load import Load
from benchmarks.torture.verdict import judge
from keek_server.interactions.kinds import TrendingScope

_ACKS = 50
"""As many acknowledgements after a kill show that they flow again."""
_FLOW_S = 45.0
_PAUSE_S = (0.2, 2.5)
_POLL_S = 0.02
_BASE_S, _CYCLE_S = 240.0, 15.0
"""The longest that a run may take: what stands around the cycles, and one cycle on average."""
_PROBLEMS_SHOWN = 20
_SETTINGS = {
    "redis_deadline_s": 1.0,
    "projection_lease_s": 1.0,
    # So low that histories, seen sets and what was counted are trimmed.
    "history_limit": 50,
    "seen_limit": 60,
    "trending_scopes": frozenset(TrendingScope),
}


class StuckError(Exception):
    """Nothing is acknowledged any more."""


@dataclass(slots=True)
class Result:
    """What one run, or several together, came to."""

    cycles: int = 0
    acked: int = 0
    lost: int = 0
    double_counted: int = 0
    projection_equals_replay: bool = True
    kills: Counter[str] = field(default_factory=Counter)

    @property
    def passed(self) -> bool:
        """Nothing lost, nothing doubled, nothing different."""
        return self.lost == 0 and self.double_counted == 0 and self.projection_equals_replay

    def add(self, other: "Result") -> None:
        """Counts another run in."""
        self.cycles += other.cycles
        self.acked += other.acked
        self.lost += other.lost
        self.double_counted += other.double_counted
        self.projection_equals_replay &= other.projection_equals_replay
        self.kills += other.kills

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "cycles": self.cycles,
            "acked": self.acked,
            "lost": self.lost,
            "double_counted": self.double_counted,
            "projection_equals_replay": self.projection_equals_replay,
            "kills": dict(sorted(self.kills.items())),
        }


async def torture(database: str, *, cycles: int, seed: int) -> Result:
    """Runs on a database, `sqlite` or `postgresql`, with all that it needs.

    Raises:
        TimeoutError: It takes too long.
        ExceptionGroup: Of StuckError, when nothing is acknowledged any more; of whatever a client met that
            no outage explains.
    """
    arena_opened = open_arena(database, server_count=2, **_SETTINGS)
    async with asyncio.timeout(_BASE_S + cycles * _CYCLE_S), arena_opened as arena:
        result = Result(cycles=cycles)
        load = Load(arena.target, arena.video_ids, f"{seed} {database}")
        chance = random.Random(f"{seed} {database} kills")
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run(), name="load")
            await _strike_again_and_again(arena, load, result, chance, f"{database}, seed {seed}")
            load.stop()
        verdict = await judge(arena, load, chance)
    for problem in verdict.problems[:_PROBLEMS_SHOWN]:
        print(f"{database}, seed {seed}: {problem[:500]}", file=sys.stderr)
    result.acked, result.lost, result.double_counted = len(load.acked), verdict.lost, verdict.double_counted
    result.projection_equals_replay = not verdict.problems
    return result


async def _strike_again_and_again(
    arena: Arena, load: Load, result: Result, chance: random.Random, run: str
) -> None:
    killer = Killer(arena, chance)
    for cycle in range(1, result.cycles + 1):
        await asyncio.sleep(chance.uniform(*_PAUSE_S))
        started = time.monotonic()
        # What is rebuilt shows no earlier fault: at last, Redis keeps what it has.
        killed = await killer.strike(killer.choose(spare_redis=3 * cycle > 2 * result.cycles))
        result.kills.update(killed)
        name = f"{run}, cycle {cycle}/{result.cycles}, struck {' and '.join(killed)}"
        await _until_acknowledged(load, arena, name)
        seconds = time.monotonic() - started
        print(f"{name}, going on after {seconds:.1f} s, {len(load.acked)} acknowledged", file=sys.stderr)


async def _until_acknowledged(load: Load, arena: Arena, name: str) -> None:
    enough = len(load.acked) + _ACKS
    deadline = time.monotonic() + _FLOW_S
    while len(load.acked) < enough:
        if time.monotonic() > deadline:
            raise StuckError(f"{name}, and nothing is acknowledged after {_FLOW_S:g} s\n{arena.log_tails()}")
        await asyncio.sleep(_POLL_S)
