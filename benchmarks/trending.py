"""Trending as the projector writes it: exact, bounded, and faster than counting one by one.

The rows go the way that rows of the log go, into a real Redis of this benchmark's own.

- Shuffled and late events of ten simulated years, against an exact computation without Redis.
- A list of a million videos: its memory, and the longest command while it is updated, trimmed
  and read, from the server's own slow log.
- Updates of scores a second, in a list of the default length, against single ZINCRBY calls of the
  same client in a set of that length, in interleaved rounds. An event updates two scores, for the
  trending and for the rising list, and beside them a history, a seen set and the user's counted
  set; `events_vs_single_zincrby` counts events.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from tqdm import tqdm

from benchmarks.reference import expected
from benchmarks.servers import report, running_redis
from keek_server.clock import now_us
from keek_server.interactions.connection import open_redis
from keek_server.interactions.keys import ProjectionKeys
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.projection import Projection
from keek_server.interactions.rows import LoggedInteraction
from keek_server.interactions.trending import Position, Trending
from keek_server.interactions.writer import ROWS_A_CALL, ProjectionWriter
from keek_server.settings import Settings

_YEAR_US = 365 * 24 * 3600 * 1_000_000
_KINDS = (InteractionKind.VIEW, InteractionKind.LIKE, InteractionKind.SAVE, InteractionKind.SHARE)
_SLOW_US = 500
_USUAL_MEMBERS = 100_000
_USERS = 50_000
_LISTS = 2


@dataclass
class Board:
    """One projection in Redis, and the rows that were applied to it."""

    redis: Redis
    keys: ProjectionKeys
    writer: ProjectionWriter
    trending: Trending
    token: str
    generation: int
    seq: int = 0

    @property
    def key(self) -> str:
        """Of the sorted set."""
        return f"{self.keys.generation(self.generation)}trending:"

    async def apply(self, rows: list[LoggedInteraction]) -> None:
        """Applies rows that follow those before."""
        self.seq = await self.writer.apply(self.token, self.generation, self.seq, rows)
        assert self.seq == rows[-1].seq


def main() -> None:
    """Prints one JSON object, and writes it to benchmarks/results/trending.json."""
    parser = argparse.ArgumentParser(description="Trending in Redis")
    parser.add_argument("--events", type=int, default=300_000, help="of ten years (default: 300,000)")
    parser.add_argument("--members", type=int, default=1_000_000, help="videos (default: 1,000,000)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds, interleaved (default: 7)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    report("trending", asyncio.run(_run(arguments)))


async def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    rng = random.Random(arguments.seed)
    async with running_redis() as server:
        settings = Settings(redis_url=server.service.url, trending_limit=arguments.members)
        async with open_redis(settings) as redis:
            result = {
                "top100_identical": await _exact(
                    await _board(redis, settings, "exact"), settings, rng, arguments
                ),
                "one_user_10000_events_moves": await _one_user(await _board(redis, settings, "one")),
            }
            board = await _board(redis, settings, "large")
            await _fill(board, arguments.members, rng)
            result["bytes_per_member"] = await _bytes_per_member(board)
            result |= await _longest_command(board, arguments.members, rng)
            await redis.flushdb()
            usual = await _board(redis, Settings(redis_url=server.service.url), "usual")
            await _fill(usual, _USUAL_MEMBERS, rng)
            result |= await _rates(usual, arguments.rounds, _USUAL_MEMBERS, rng)
    return result


async def _board(redis: Redis, settings: Settings, log_id: str) -> Board:
    keys = ProjectionKeys.of(settings.redis_prefix, log_id)
    projection = Projection(redis, keys, deadline_s=5.0)
    writer = ProjectionWriter(redis, keys, settings.model_copy(update={"projection_lease_s": 600.0}))
    lease = await writer.acquire()
    assert lease is not None
    generation = await writer.begin(lease.token, log_id)
    await writer.publish(lease.token, generation)
    return Board(redis, keys, writer, Trending(projection, settings), lease.token, generation)


def _row(seq: int, user: str, video: str, kind: InteractionKind, time_us: int) -> LoggedInteraction:
    return LoggedInteraction(seq, user, video, kind, time_us, time_us, "", [])


async def _exact(board: Board, settings: Settings, rng: random.Random, arguments: argparse.Namespace) -> bool:
    """Whether the first hundred are those of an exact computation, in the same order."""
    now = now_us()
    rows = [
        _row(
            seq,
            f"u{rng.randrange(20_000)}",
            f"v{int(rng.paretovariate(1.0)) % 5_000}",
            rng.choice(_KINDS),
            # Half of them within the last days, where they still weigh something.
            now - (rng.randrange(10 * _YEAR_US) if rng.random() < 0.5 else int(rng.expovariate(1 / 2e11))),
        )
        for seq in range(1, arguments.events + 1)
    ]
    for start in _progress(range(0, len(rows), 5_000), "ten years"):
        await board.apply(rows[start : start + 5_000])
    exact = expected(rows, settings)["trending:"]
    best = sorted(exact, key=lambda video: -exact[video])[:100]
    return [video.video_id for video in (await board.trending.top(100)).videos] == best


async def _one_user(board: Board) -> int:
    """How often 10,000 likes of one user, one after the other, change a video's score."""
    moves, score = 0, None
    # In the middle of a window: what is counted at its border is not the question.
    window_us = 72 * 3600 * 1_000_000
    time_us = now_us() // window_us * window_us - window_us // 2
    for seq in range(1, 10_001):
        await board.apply([_row(seq, "bot", "v1", InteractionKind.LIKE, time_us + seq)])
        now = await board.redis.zscore(board.key, "v1")
        moves += now != score
        score = now
    return moves


async def _fill(board: Board, members: int, rng: random.Random) -> None:
    now = now_us()
    for start in _progress(range(0, members, 5_000), "members"):
        rows = [
            _row(
                i + 1,
                f"u{rng.randrange(_USERS)}",
                _video(i),
                rng.choice(_KINDS),
                now - rng.randrange(10**11),
            )
            for i in range(start, min(members, start + 5_000))
        ]
        await board.apply(rows)


async def _bytes_per_member(board: Board) -> float:
    used: Any = await board.redis.memory_usage(board.key, samples=0)
    return round(used / await board.redis.zcard(board.key), 1)


async def _longest_command(board: Board, members: int, rng: random.Random) -> dict[str, Any]:
    """The longest command of updates, trims and reads, in milliseconds."""
    await board.redis.config_set("slowlog-log-slower-than", _SLOW_US)
    await board.redis.config_set("slowlog-max-len", 100_000)
    await board.redis.slowlog_reset()
    now = now_us()
    for batch in _progress(range(200), "updates, trims, reads"):
        # New videos: the list outgrows its limit again and again.
        fresh = [
            _row(
                board.seq + 1 + i, f"u{rng.randrange(_USERS)}", f"new-{batch}-{i}", InteractionKind.LIKE, now
            )
            for i in range(ROWS_A_CALL)
        ]
        await board.apply(fresh)
        await board.apply(_updates(board, 500, members, rng))
        page = await board.trending.top(1000)
        await board.trending.top(1000, after=Position(page.end.log2_score - 2.0))
        await board.trending.rising(100)
    entries: Any = await board.redis.slowlog_get(100_000)
    await board.redis.config_set("slowlog-log-slower-than", -1)
    return {
        "max_redis_command_ms": round(max((e["duration"] for e in entries), default=_SLOW_US) / 1000, 3),
        "members": await board.redis.zcard(board.key),
    }


def _updates(board: Board, count: int, members: int, rng: random.Random) -> list[LoggedInteraction]:
    now = now_us()
    return [
        _row(
            board.seq + 1 + i,
            f"u{rng.randrange(_USERS)}",
            _video(rng.randrange(members)),
            rng.choice(_KINDS),
            now,
        )
        for i in range(count)
    ]


async def _rates(board: Board, rounds: int, members: int, rng: random.Random) -> dict[str, Any]:
    events, singles = [], []
    await board.redis.copy(board.key, "single")
    for _ in _progress(range(rounds), "rounds"):
        rows = _updates(board, 20_000, members, rng)
        started = time.perf_counter()
        await board.apply(rows)
        events.append(len(rows) / (time.perf_counter() - started))
        videos = [_video(rng.randrange(members)) for _ in range(5_000)]
        started = time.perf_counter()
        for video in videos:
            await board.redis.zincrby("single", 1.0, video)
        singles.append(len(videos) / (time.perf_counter() - started))
    ratio = statistics.median(event / single for event, single in zip(events, singles, strict=True))
    return {
        "updates_per_s": round(_LISTS * statistics.median(events)),
        "single_zincrby_per_s": round(statistics.median(singles)),
        "updates_vs_single_zincrby": round(_LISTS * ratio, 2),
        "events_vs_single_zincrby": round(ratio, 2),
    }


def _video(number: int) -> str:
    return f"v{number:010d}"


def _progress(steps: range, what: str) -> Iterator[int]:
    return iter(tqdm(steps, desc=what, file=sys.stderr, mininterval=1.0))


if __name__ == "__main__":
    main()
