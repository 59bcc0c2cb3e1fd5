"""Publishing and rolling back in turn under a constant load of feeds: does any feed mix two releases?

A small release is trained, published and served first. Then odd cycles publish a pair of towers whose vectors
are rotated by a random orthogonal matrix of their own, with the command that engineers use, and even cycles
roll back. Scores are the same within each release, and mean nothing across two: every personalised score of
every feed is compared with what it must be. Latencies are compared with the seconds before each cycle.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

import keek
import keek.aio
from benchmarks.feed_load import FeedLoad
from benchmarks.feed_scores import ExpectedScores
from benchmarks.release_cycles import Cycles
from benchmarks.release_stage import Stage, answered_by, open_stage, publish
from benchmarks.rotated_towers import write_rotated
from benchmarks.servers import report
from benchmarks.tower_files import TowerFiles

_DATABASES: Final = ("sqlite", "postgresql")
_ROLLBACK_S: Final = 1.0
"""What counts as the time of a rollback, from its call on."""
_WARM_UP_S: Final = 3.0
_MUST_BE_NONE: Final = ("errors", "mixed", "stale", "server_restarts")
_TAGS: Final = ("cats", "dogs", "food", "music", "travel")


def main() -> None:
    """Prints one JSON object, also to benchmarks/results/publish.json; exits with 1 when a feed was wrong."""
    parser = argparse.ArgumentParser(description="Publishing and rolling back under a load of feeds")
    parser.add_argument("--cycles", type=int, default=50, help="publications and rollbacks (default: 50)")
    parser.add_argument("--rate", type=float, default=40.0, help="calls a second (default: 40)")
    parser.add_argument("--users", type=int, default=100, help="users that ask (default: 100)")
    parser.add_argument(
        "--videos", type=int, default=5000, help="videos beside the first 600 (default: 5000)"
    )
    parser.add_argument("--servers", type=int, default=2, help="servers on one database (default: 2)")
    parser.add_argument("--steady", type=float, default=6.0, help="seconds before each cycle (default: 6)")
    parser.add_argument("--database", choices=_DATABASES, default=_DATABASES[0])
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="keek-publish-") as directory:
        result = asyncio.run(_run(Path(directory), arguments))
    report("publish", result | {"seconds": round(time.monotonic() - started)})
    sys.exit(not result["feeds"] or any(result[name] for name in _MUST_BE_NONE))


async def _run(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    async with open_stage(directory / "stage", arguments.database, server_count=arguments.servers) as stage:
        async with keek.aio.Client(stage.addresses[0]) as client:
            await client.import_videos(_videos(arguments.videos))
        pairs = await asyncio.to_thread(_rotated, stage, directory, -(-arguments.cycles // 2))
        expected = await ExpectedScores.of(
            stage.towers, stage.settings, users=arguments.users, history_length=stage.history_length
        )
        pids = [server.pid for server in stage.servers]
        async with FeedLoad(stage.addresses, expected, calls_per_s=arguments.rate).running() as tally:
            await asyncio.sleep(_WARM_UP_S)
            cycles = await _Turns(stage, expected.user_ids[0], pairs).run(arguments.cycles, arguments.steady)
        restarts = sum(pid != server.pid for pid, server in zip(pids, stage.servers, strict=True))
    return {
        **cycles.figures(tally),
        "blind_share": round(expected.blind_share(), 5),
        "server_restarts": restarts,
        "faults": dict(tally.faults),
        **{name: getattr(arguments, name) for name in ("rate", "users", "videos", "servers", "database")},
    }


def _videos(count: int) -> list[keek.Video]:
    return [
        keek.Video(
            video_id=f"more-{i}",
            owner_id=f"o{i % 50}",
            tags=[_TAGS[i % 5], _TAGS[i % 3]],
            duration_s=5.0 + i % 120,
        )
        for i in range(count)
    ]


def _rotated(stage: Stage, directory: Path, count: int) -> list[TowerFiles]:
    """Beforehand, so that nothing but the publisher takes time from the servers."""
    pairs = []
    for seed in range(count):
        folder = directory / f"rotation-{seed}"
        folder.mkdir()
        pairs.append(write_rotated(stage.towers, seed, folder))
    return pairs


class _Turns:
    """Publishes and rolls back."""

    def __init__(self, stage: Stage, user_id: str, pairs: list[TowerFiles]) -> None:
        """
        Args:
            stage: What serves.
            user_id: Asks all servers for feeds, to see what they serve.
            pairs: One a publication.
        """
        self._stage = stage
        self._user_id = user_id
        self._pairs = iter(pairs)
        self._cycles = Cycles()
        self._active = self._before = ""

    async def run(self, count: int, steady_s: float) -> Cycles:
        """In turn, each after some seconds of nothing."""
        async with self._stage.admin() as admin:
            self._active = (await admin.list_releases(page_size=1)).rollout.plan.release_id
            self._cycles.allowed.append((0.0, frozenset({self._active})))
            for number in tqdm(range(count), desc="cycles", file=sys.stderr):
                started = time.perf_counter()
                await asyncio.sleep(steady_s)
                self._cycles.steady.append((started, time.perf_counter()))
                await (self._roll_back(admin) if number % 2 else self._publish(admin))
        return self._cycles

    async def _publish(self, admin: keek.aio.Client) -> None:
        cycles, old = self._cycles, self._active
        probe = asyncio.create_task(self._answered(lambda release_id: release_id != old))
        length = str(self._stage.history_length)
        done = await publish(next(self._pairs), "--history-length", length)
        rollout = (await admin.list_releases(page_size=1)).rollout
        new = rollout.plan.release_id
        if done.code or not rollout.converged or new == old:
            probe.cancel()
            raise RuntimeError(f"publishing ended with code {done.code}, {rollout}:\n{done.output[-3000:]}")
        cycles.publish_ms.append((await probe - done.started) * 1e3)
        self._turn(new, done.started, done.ended)
        begin, end = done.embedding or (done.ended, done.ended)
        cycles.publishing.append(((done.started, begin), (end, done.ended)))
        cycles.embedding.append((begin, end))

    async def _roll_back(self, admin: keek.aio.Client) -> None:
        cycles, old = self._cycles, self._before
        started = time.perf_counter()
        probe = asyncio.create_task(self._answered(lambda release_id: release_id == old))
        rollout = await admin.rollback_release(reason="benchmark")
        returned = time.perf_counter()
        if not rollout.converged or rollout.plan.release_id != old:
            probe.cancel()
            raise RuntimeError(f"the rollback from {self._active} to {old} did not converge: {rollout}")
        cycles.rollback_ms.append((await probe - started) * 1e3)
        cycles.rollback_call_ms.append((returned - started) * 1e3)
        self._turn(old, started, returned)
        await asyncio.sleep(max(0.0, started + _ROLLBACK_S - time.perf_counter()))
        cycles.rollbacks.append((started, time.perf_counter()))

    def _turn(self, new: str, started: float, ended: float) -> None:
        """Both may answer until all servers are said to have turned, and then the new one alone."""
        self._cycles.allowed += [
            (started, frozenset({self._active, new})),
            (ended, frozenset({new})),
        ]
        self._before, self._active = self._active, new

    async def _answered(self, is_it: Callable[[str], bool]) -> float:
        return await answered_by(self._stage.addresses, self._user_id, is_it)


if __name__ == "__main__":
    main()
