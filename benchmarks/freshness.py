"""How soon a like shows in another user's feed, while interactions pour in.

A small release is trained and published first, in a data directory of its own. Then, while other
users' views come in at a concurrency of 16, a user likes a video that nobody knew, and a user who
was never seen asks for feeds until it stands in one of the trending slots. The time runs from the
call that records the like.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

import keek
import keek.aio
from benchmarks.servers import report
from benchmarks.small_release import publish_small_release
from keek_training.demo.processes import running_server, wait_until_serving

_UP_S = 90.0
_CONCURRENCY = 16
_LOAD_VIDEOS = 50_000
_GIVE_UP_S = 10.0
_PAGE_SIZE = 50
_TRENDING = keek.FeedSource.FEED_SOURCE_TRENDING


def main() -> None:
    """Prints one JSON object, and writes it to benchmarks/results/freshness.json."""
    parser = argparse.ArgumentParser(description="From a like to another user's trending slots")
    parser.add_argument("--likes", type=int, default=300, help="likes to follow (default: 300)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keek-freshness-") as directory:
        publish_small_release(Path(directory))
        with running_server(Path(directory) / "server.log", timeout_s=_UP_S) as address:
            with keek.Client(address) as client:
                wait_until_serving(client, "keek.v1.FeedService", timeout_s=_UP_S)
                client.import_videos(_videos(arguments.likes))
            result = asyncio.run(_measure(address, arguments.likes))
    report("freshness", result)


def _videos(likes: int) -> list[keek.Video]:
    ids = [f"load-{i}" for i in range(_LOAD_VIDEOS)] + [f"liked-{i}" for i in range(likes)]
    return [keek.Video(video_id=video_id) for video_id in ids]


async def _measure(address: str, likes: int) -> dict[str, Any]:
    counter = [0]
    async with keek.aio.Client(address) as client:
        load = [asyncio.create_task(_load(client, worker, counter)) for worker in range(_CONCURRENCY)]
        await asyncio.sleep(2.0)
        started, before = time.perf_counter(), counter[0]
        times_ms = [
            1000 * await _seconds_to_show(client, i)
            for i in tqdm(range(likes), desc="likes", file=sys.stderr)
        ]
        rate = (counter[0] - before) / (time.perf_counter() - started)
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)
    cuts = statistics.quantiles(times_ms, n=100)
    return {
        "likes": likes,
        "visible_p50_ms": round(cuts[49], 1),
        "visible_p99_ms": round(cuts[98], 1),
        "visible_max_ms": round(max(times_ms), 1),
        "load_per_s": round(rate),
    }


async def _load(client: keek.aio.Client, worker: int, counter: list[int]) -> None:
    """Views of many users, each video seldom, so that none of them outranks a fresh like."""
    while True:
        counter[0] += 1
        with suppress(keek.UnavailableError):
            await client.view(f"viewer-{counter[0]}-{worker}", f"load-{counter[0] * 7919 % _LOAD_VIDEOS}")


async def _seconds_to_show(client: keek.aio.Client, number: int) -> float:
    video_id = f"liked-{number}"
    started = time.perf_counter()
    await client.like(f"fan-{number}", video_id)
    while (elapsed_s := time.perf_counter() - started) < _GIVE_UP_S:
        feed = await client.list_feed(f"other-{number}", page_size=_PAGE_SIZE)
        if any(item.video_id == video_id and item.source == _TRENDING for item in feed.items):
            return time.perf_counter() - started
        await asyncio.sleep(0.005)
    raise TimeoutError(f"{video_id} is in nobody's trending slots after {elapsed_s:.1f} s")


if __name__ == "__main__":
    main()
