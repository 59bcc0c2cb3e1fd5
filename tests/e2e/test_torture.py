"""A short run of `python -m benchmarks.torture` on each database."""

import pytest
from benchmarks.torture.run import torture

CYCLES = 3
SEED = 642
"""Its kills are of every kind, and none takes both servers away."""


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_what_was_acknowledged_survives_kills_and_redis_is_a_replay_of_the_log(database: str) -> None:
    result = await torture(database, cycles=CYCLES, seed=SEED)
    assert sum(result.kills.values()) >= CYCLES
    assert result.acked > 0
    assert (result.lost, result.double_counted) == (0, 0)
    assert result.projection_equals_replay
