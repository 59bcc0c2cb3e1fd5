"""Requests that break the contract in many places: what their caller gets over the wire."""

# ruff: noqa: N802 - the names are gRPC methods

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from client_program import run_keek

import keek
from keek.errors import from_rpc_error
from keek.v1 import interaction_service_pb2 as interactions_pb
from keek.v1 import interaction_service_pb2_grpc, video_service_pb2_grpc
from keek.v1 import video_service_pb2 as videos_pb
from keek_server.rpc.guard import GuardInterceptor
from keek_server.rpc.rules import RuleChecker

METADATA_BYTES = 8192
"""What gRPC takes by default: up to twice as much it refuses now and then, and beyond that always."""


class Videos(video_service_pb2_grpc.VideoServiceServicer):
    """Takes what keeps the contract."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    async def ImportVideos(
        self, request: videos_pb.ImportVideosRequest, _context: Any
    ) -> videos_pb.ImportVideosResponse:
        self.ids |= {video.video_id for video in request.videos}
        return videos_pb.ImportVideosResponse(created_count=len(request.videos))


class Interactions(interaction_service_pb2_grpc.InteractionServiceServicer):
    """Reads what arrives."""

    async def RecordInteractions(
        self, requests: AsyncIterator[interactions_pb.RecordInteractionsRequest], _context: Any
    ) -> interactions_pb.RecordInteractionsResponse:
        async for _ in requests:
            pass
        return interactions_pb.RecordInteractionsResponse()


@pytest.fixture
def videos() -> Videos:
    return Videos()


@pytest.fixture
async def target(videos: Videos) -> AsyncIterator[str]:
    server = grpc.aio.server(interceptors=[GuardInterceptor(RuleChecker())])
    video_service_pb2_grpc.add_VideoServiceServicer_to_server(videos, server)
    interaction_service_pb2_grpc.add_InteractionServiceServicer_to_server(Interactions(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


@pytest.fixture
async def channel(target: str) -> AsyncIterator[grpc.aio.Channel]:
    limits = [("grpc.max_metadata_size", METADATA_BYTES), ("grpc.absolute_max_metadata_size", METADATA_BYTES)]
    async with grpc.aio.insecure_channel(target, limits) as own:
        yield own


@pytest.mark.parametrize("count", [60, 1000])
async def test_an_import_of_many_bad_videos_is_told_the_first(channel: grpc.aio.Channel, count: int) -> None:
    bad = [videos_pb.Video(video_id=f"v{n}", duration_s=-1, language="no tag") for n in range(count)]
    with pytest.raises(grpc.RpcError) as caught:
        await video_service_pb2_grpc.VideoServiceStub(channel).ImportVideos(
            videos_pb.ImportVideosRequest(videos=bad)
        )
    error = from_rpc_error(caught.value)
    assert isinstance(error, keek.InvalidArgumentError)
    assert len(error.violations) > 30
    assert {violation.field for violation in error.violations[:4]} == {
        f"videos[{n}].{field}" for n in (0, 1) for field in ("duration_s", "language")
    }
    assert error.message.endswith(" more")


async def test_a_stream_of_many_bad_interactions_is_told_the_first(channel: grpc.aio.Channel) -> None:
    bad = [interactions_pb.Interaction(event_id="no id", user_id="u", video_id="v") for _ in range(1000)]
    with pytest.raises(grpc.RpcError) as caught:
        await interaction_service_pb2_grpc.InteractionServiceStub(channel).RecordInteractions(
            iter([interactions_pb.RecordInteractionsRequest(interactions=bad)])
        )
    error = from_rpc_error(caught.value)
    assert isinstance(error, keek.InvalidArgumentError)
    assert error.violations[0].field.startswith("interactions[0].")
    assert error.message.endswith(" more")


async def test_a_table_with_many_bad_lines_is_imported_without_them(
    target: str, videos: Videos, tmp_path: Path
) -> None:
    file = tmp_path / "videos.csv"
    # Also behind the first ones, which alone the server names.
    bad = {n for n in range(900) if n % 9 in (0, 4)}
    lines = (f"v{n},{'not a language' if n in bad else 'en'}\n" for n in range(900))
    file.write_text("video_id,language\n" + "".join(lines))
    done = await run_keek(target, "videos", "import", str(file))
    assert done.code == 1
    assert done.out == "700 videos imported (700 new, 0 replaced), 200 lines left out\n"
    assert videos.ids == {f"v{n}" for n in range(900) if n not in bad}
    assert sorted(done.err.splitlines()) == sorted(
        f"{file}:{n + 2}: language: is not a BCP 47 language tag" for n in bad
    )
