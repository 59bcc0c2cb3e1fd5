"""What ghz makes of the configs' templates: real calls, seen by a real server."""

import asyncio
from collections import Counter
from pathlib import Path

import grpc
import pytest
from benchmarks.ghz import ghz_program

from keek.v1 import feed_service_pb2 as pb
from keek.v1 import feed_service_pb2_grpc
from keek_server.errors import SetupError

ROOT = Path(__file__).parents[2]
CALLS = 3000


class Remembering(feed_service_pb2_grpc.FeedServiceServicer):
    """Counts who asks."""

    def __init__(self) -> None:
        self.users: Counter[str] = Counter()

    async def ListFeed(  # noqa: N802
        self, request: pb.ListFeedRequest, _context: grpc.aio.ServicerContext
    ) -> pb.ListFeedResponse:
        self.users[request.user_id] += 1
        return pb.ListFeedResponse()


@pytest.fixture(scope="module")
def ghz() -> Path:
    try:
        return ghz_program()
    except SetupError as error:
        pytest.skip(f"{error}")


async def test_some_users_ask_far_more_often_than_others(ghz: Path) -> None:
    seen = Remembering()
    server = grpc.aio.server()
    feed_service_pb2_grpc.add_FeedServiceServicer_to_server(seen, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        process = await asyncio.create_subprocess_exec(
            ghz,
            *("--config", ROOT / "clients/ghz/list_feed.json", "--total", str(CALLS)),
            # A call that gives up is not seen.
            *("--timeout", "60s"),
            *("--import-paths", ROOT / "proto", "--proto", ROOT / "proto/keek/v1/feed_service.proto"),
            f"127.0.0.1:{port}",
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(120):
            assert await process.wait() == 0
    finally:
        await server.stop(None)
    ranks = {int(user.removeprefix("u")): count for user, count in seen.users.items()}
    assert sum(ranks.values()) == CALLS
    assert min(ranks) == 1
    assert 256 < max(ranks) <= 1000
    # Eleven bounds, each about twice the one before, are drawn alike: 18 % are the first user, 63 % the first
    # 32. Zipf's law over a thousand gives 13 % and 54 %.
    assert 0.13 < ranks[1] / CALLS < 0.23
    assert 0.55 < sum(count for rank, count in ranks.items() if rank <= 32) / CALLS < 0.70
