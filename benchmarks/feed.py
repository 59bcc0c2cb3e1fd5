"""ListFeed, one call at a time, against an empty method that returns the same ten items.

Both servers run in processes of their own; rounds are interleaved, and the medians over the
rounds are what counts: `p50_vs_echo` says how much a feed costs beyond the bare call.
It serves the release of the data directory: `make demo` first.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Callable
from typing import Any

import grpc

import keek
from benchmarks.servers import report
from keek.v1 import feed_service_pb2, feed_service_pb2_grpc
from keek_server.settings import Settings
from keek_training.demo.processes import running_server, wait_until_serving

_UP_S = 60.0
_WARM_UP = 50


def main() -> None:
    """Prints one JSON object, and writes it to benchmarks/results/feed.json."""
    parser = argparse.ArgumentParser(description="ListFeed against an empty call")
    parser.add_argument("--calls", type=int, default=500, help="calls a round (default: 500)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, interleaved (default: 5)")
    parser.add_argument("--users", type=int, default=200, help="users u1, u2, ... (default: 200)")
    arguments = parser.parse_args()
    settings = Settings()
    log = settings.data_dir / "logs" / "benchmark.log"
    with running_server(log, timeout_s=_UP_S) as address, keek.Client(address) as client:
        wait_until_serving(client, "keek.v1.FeedService", timeout_s=_UP_S)
        result = _measure(client, arguments.calls, arguments.rounds, arguments.users)
    report("feed", result)


def _measure(client: keek.Client, calls: int, rounds: int, users: int) -> dict[str, Any]:
    answer = client.list_feed("u1", page_size=10)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    echo = context.Process(target=_serve_echo, args=(theirs, answer.SerializeToString()), daemon=True)
    echo.start()
    try:
        with keek.Client(f"127.0.0.1:{ours.recv()}") as empty:
            feeds, echoes = [], []
            for _ in range(rounds):
                feeds.append(_round(lambda i: client.list_feed(f"u{i % users + 1}", page_size=10), calls))
                echoes.append(_round(lambda i: empty.list_feed(f"u{i % users + 1}", page_size=10), calls))
    finally:
        echo.terminate()
        echo.join()
    feed_p50, echo_p50 = (statistics.median(p50 for p50, _ in part) for part in (feeds, echoes))
    return {
        "release": answer.release_id,
        "calls": calls * rounds,
        "p50_ms": round(feed_p50, 3),
        "p99_ms": round(statistics.median(p99 for _, p99 in feeds), 3),
        "echo_p50_ms": round(echo_p50, 3),
        "p50_vs_echo": round(feed_p50 / echo_p50, 2),
    }


def _round(call: Callable[[int], object], calls: int) -> tuple[float, float]:
    """p50 and p99 of one round, in milliseconds."""
    times_ms = []
    for i in range(_WARM_UP + calls):
        started = time.perf_counter()
        call(i)
        times_ms.append((time.perf_counter() - started) * 1000)
    cuts = statistics.quantiles(times_ms[_WARM_UP:], n=100)
    return cuts[49], cuts[98]


def _serve_echo(pipe: Any, answer: bytes) -> None:
    """An empty grpc.aio method that answers every ListFeed with the same page."""
    response = feed_service_pb2.ListFeedResponse.FromString(answer)

    class Echo(feed_service_pb2_grpc.FeedServiceServicer):
        async def ListFeed(self, _request: Any, _context: Any) -> Any:  # noqa: N802
            return response

    async def serve() -> None:
        server = grpc.aio.server()
        feed_service_pb2_grpc.add_FeedServiceServicer_to_server(Echo(), server)
        pipe.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
