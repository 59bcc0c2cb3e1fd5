"""Durable interactions a second through gRPC, against the same rows inserted without Keek.

One server on a database, Redis and its projector at work; everything that is counted has been
acknowledged, so committed. Each round measures, one after the other:

- client-streaming, messages of a thousand interactions on several streams;
- unary calls at concurrency 64, against an empty grpc.aio call of the same shape and load;
- raw batched inserts of the same rows into a table of the same shape, in the same database, by
  the database's own driver: a thousand rows a transaction, as durable.

Ratios are medians over the rounds.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

import grpc
from tqdm import tqdm

from benchmarks.arena import Arena, open_arena
from benchmarks.raw_inserts import RawRow, RawTable, open_raw_table
from benchmarks.servers import report
from keek.v1 import interaction_service_pb2 as pb
from keek.v1 import interaction_service_pb2_grpc as pb_grpc
from keek_server.clock import now_us

_CONCURRENCY = 64
_STREAMS = 8
_ROWS_A_MESSAGE = 1000
_USERS = 10_000
_WARM_UP = 2_000


def main() -> None:
    """Prints one JSON object, and writes it to benchmarks/results/interactions.json."""
    parser = argparse.ArgumentParser(description="Durable interactions a second")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--rows", type=int, default=40_000, help="streamed a round (default: 40,000)")
    parser.add_argument("--calls", type=int, default=8_000, help="unary calls a round (default: 8,000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, interleaved (default: 5)")
    arguments = parser.parse_args()
    result = asyncio.run(_run(arguments))
    report(f"interactions-{arguments.database}", result)


async def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    echo = context.Process(target=_serve_echo, args=(theirs,), daemon=True)
    echo.start()
    try:
        async with open_arena(arguments.database, server_count=1) as arena:
            address = f"127.0.0.1:{await asyncio.to_thread(ours.recv)}"
            return await _measure(arena, address, arguments)
    finally:
        echo.terminate()
        echo.join()


async def _measure(arena: Arena, echo_address: str, arguments: argparse.Namespace) -> dict[str, Any]:
    rounds: list[dict[str, float]] = []
    async with (
        grpc.aio.insecure_channel(arena.servers[0].address) as channel,
        grpc.aio.insecure_channel(echo_address) as echo_channel,
        open_raw_table(arena.settings) as raw,
    ):
        keek, echo = (pb_grpc.InteractionServiceStub(c) for c in (channel, echo_channel))
        await _unary(keek, _interactions(arena, _WARM_UP))
        await _unary(echo, _interactions(arena, _WARM_UP))
        for _ in tqdm(range(arguments.rounds), desc=arguments.database, file=sys.stderr):
            streamed = await _stream(keek, _interactions(arena, arguments.rows))
            inserted = await _raw(raw, _interactions(arena, arguments.rows))
            called = await _unary(keek, _interactions(arena, arguments.calls))
            echoed = await _unary(echo, _interactions(arena, arguments.calls))
            rounds.append(
                {
                    "stream_per_s": streamed,
                    "raw_rows_per_s": inserted,
                    "unary_per_s": called,
                    "echo_per_s": echoed,
                }
            )
    medians = {name: round(statistics.median(one[name] for one in rounds)) for name in rounds[0]}
    return {
        "database": arguments.database,
        **medians,
        "stream_vs_raw": _ratio(rounds, "stream_per_s", "raw_rows_per_s"),
        "unary_vs_echo": _ratio(rounds, "unary_per_s", "echo_per_s"),
    }


def _ratio(rounds: Sequence[dict[str, float]], part: str, whole: str) -> float:
    return round(statistics.median(one[part] / one[whole] for one in rounds), 3)


def _interactions(arena: Arena, count: int) -> list[pb.Interaction]:
    """Made before the clock starts: what clients spend on them is not the question."""
    now = now_us()
    made = []
    for i in range(count):
        one = pb.Interaction(
            event_id=str(uuid.uuid4()),
            user_id=f"u{hash((now, i)) % _USERS}",
            video_id=arena.video_ids[i % len(arena.video_ids)],
            kind=pb.InteractionKind.ValueType(1 + i % 4),
        )
        one.event_time.FromMicroseconds(now - i)
        if one.kind == pb.INTERACTION_KIND_VIEW:
            one.watched.FromMilliseconds(i % 60_000)
        made.append(one)
    return made


async def _stream(stub: Any, interactions: list[pb.Interaction]) -> float:
    messages = [
        pb.RecordInteractionsRequest(interactions=interactions[start : start + _ROWS_A_MESSAGE])
        for start in range(0, len(interactions), _ROWS_A_MESSAGE)
    ]
    started = time.perf_counter()
    answers = await asyncio.gather(
        *(stub.RecordInteractions(iter(messages[i::_STREAMS]), timeout=120.0) for i in range(_STREAMS))
    )
    seconds = time.perf_counter() - started
    assert sum(answer.created_count for answer in answers) == len(interactions)
    return len(interactions) / seconds


async def _unary(stub: Any, interactions: list[pb.Interaction]) -> float:
    requests = iter([pb.RecordInteractionRequest(interaction=one) for one in interactions])

    async def worker() -> None:
        for request in requests:
            assert (await stub.RecordInteraction(request, timeout=30.0)).created

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(_CONCURRENCY)))
    return len(interactions) / (time.perf_counter() - started)


async def _raw(table: RawTable, interactions: list[pb.Interaction]) -> float:
    rows = [_raw_row(one) for one in interactions]
    batches = [rows[start : start + _ROWS_A_MESSAGE] for start in range(0, len(rows), _ROWS_A_MESSAGE)]
    started = time.perf_counter()
    for batch in batches:
        await table.insert(batch)
    return len(rows) / (time.perf_counter() - started)


def _raw_row(one: pb.Interaction) -> RawRow:
    time_us = one.event_time.ToMicroseconds()
    event_id = uuid.UUID(one.event_id)
    watched_ms = one.watched.ToMilliseconds() if one.HasField("watched") else None
    return (event_id, one.user_id, one.video_id, int(one.kind), time_us, time_us, "", "[]", watched_ms)


def _serve_echo(pipe: Any) -> None:
    """An empty grpc.aio method that acknowledges every interaction at once."""
    response = pb.RecordInteractionResponse(created=True)

    class Echo(pb_grpc.InteractionServiceServicer):
        async def RecordInteraction(self, _request: Any, _context: Any) -> Any:  # noqa: N802
            return response

    async def serve() -> None:
        server = grpc.aio.server()
        pb_grpc.add_InteractionServiceServicer_to_server(Echo(), server)
        pipe.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    # As the server under test runs.
    import uvloop

    uvloop.run(serve())


if __name__ == "__main__":
    main()
