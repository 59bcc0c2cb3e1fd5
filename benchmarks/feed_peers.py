"""What the feed is measured against, each a server of its own: `python -m benchmarks.feed_peers KIND ...`.

`echo ANSWER` is an empty method that gives every ListFeed the page in the file ANSWER. `prototype
FOLDER` is the design that Keek takes the place of: FastAPI, which scores all videos of a corpus with a dot
product in NumPy, sorts them all and takes the first; everything is in memory. Both print their port.
"""

import argparse
import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import fastapi
import grpc
import numpy as np
import uvicorn
import uvloop

from benchmarks.feed_users import USERS
from keek.v1 import feed_service_pb2, feed_service_pb2_grpc
from keek_server.embedded import launch
from keek_server.releases.release import Corpus
from keek_server.towers.contract import DIMENSION

_HOST = "127.0.0.1"
_UP_S = 60.0


@asynccontextmanager
async def running_peer(kind: str, path: Path) -> AsyncIterator[str]:
    """One of them, in a process of its own that dies with this one; yields its address.

    Raises:
        TimeoutError: When it does not come up.
    """
    changes: launch.Changes = {"set": {}, "prepend": {}, "drop": [], "user": None}
    launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), json.dumps(changes)]
    process = await asyncio.create_subprocess_exec(
        *launcher, sys.executable, "-m", __name__, kind, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_UP_S):
            line = await process.stdout.readline()
        yield f"{_HOST}:{int(line)}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def serve_echo(answer: feed_service_pb2.ListFeedResponse) -> None:
    """An empty grpc.aio method, on the event loop that Keek uses."""

    class Echo(feed_service_pb2_grpc.FeedServiceServicer):
        async def ListFeed(self, _request: Any, _context: Any) -> Any:  # noqa: N802
            return answer

    server = grpc.aio.server()
    feed_service_pb2_grpc.add_FeedServiceServicer_to_server(Echo(), server)  # type: ignore[abstract]
    port = server.add_insecure_port(f"{_HOST}:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def prototype_app(corpus: Corpus) -> fastapi.FastAPI:
    """`GET /feed/{user_id}?count=10`, by vectors of users that are in memory as well."""
    vectors = np.array(corpus.vectors)
    users = np.random.default_rng(5).standard_normal((USERS, DIMENSION), np.float32)
    app = fastapi.FastAPI()

    # Not async: FastAPI runs it in a thread, so that it does not stop the loop.
    @app.get("/feed/{user_id}")
    def feed(user_id: str, count: int = 10) -> dict[str, Any]:
        scores = vectors @ users[int(user_id.removeprefix("u")) % USERS]
        order = np.argsort(-scores)[:count]
        return {
            "items": [
                {"video_id": corpus.ids.id_of(row), "score": score}
                for row, score in zip(order.tolist(), scores[order].tolist(), strict=True)
            ]
        }

    return app


def _serve_prototype(folder: Path) -> None:
    app = prototype_app(Corpus.open(folder))
    with socket.socket() as listening:
        listening.bind((_HOST, 0))
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        asyncio.run(uvicorn.Server(config).serve([listening]))


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description="A server that the feed is measured against")
    parser.add_argument("kind", choices=("echo", "prototype"))
    parser.add_argument("path", type=Path)
    arguments = parser.parse_args()
    if arguments.kind == "prototype":
        _serve_prototype(arguments.path)
    else:
        uvloop.run(serve_echo(feed_service_pb2.ListFeedResponse.FromString(arguments.path.read_bytes())))


if __name__ == "__main__":
    main()
