"""How many may watch trending lists."""

from types import SimpleNamespace
from typing import Any

import pytest

from keek.v1 import trending_service_pb2 as pb
from keek_server.errors import OverloadedError
from keek_server.interactions.trending import Position, TrendingPage, TrendingVideo
from keek_server.interactions.watch import TrendingWatch
from keek_server.rpc.trending import TrendingServicer
from keek_server.videos.slots import Slots

CALLER: Any = None


class Lists:
    """One video trends, whatever the list."""

    def __init__(self) -> None:
        self.read_count = 0

    def scope(self, kind: str, value: str) -> str:
        return f"{kind}:{value}"

    async def top(self, *_: Any, **__: Any) -> TrendingPage:
        self.read_count += 1
        return TrendingPage([TrendingVideo("v1", 1.0)], Position(), is_last=True)


async def test_who_finds_no_place_to_watch_is_refused_until_one_leaves() -> None:
    lists: Any = Lists()
    catalogue: Any = SimpleNamespace(briefs=None)
    watch = TrendingWatch(Slots(2, "callers of WatchTrending"))
    servicer = TrendingServicer(lists, catalogue, watch)

    def watching(tag: str) -> Any:
        return servicer.WatchTrending(pb.WatchTrendingRequest(tag=tag), CALLER)

    first, second = watching("a"), watching("b")
    assert [video.video_id for video in (await anext(first)).videos] == ["v1"]
    await anext(second)
    # Each list is another one, which would be read for nobody else.
    with pytest.raises(OverloadedError, match="there are 2 callers of WatchTrending already") as refused:
        await anext(watching("c"))
    assert refused.value.retry_after_s > 0
    assert lists.read_count == 2
    await first.aclose()
    third = watching("c")
    await anext(third)
    with pytest.raises(OverloadedError):
        await anext(watching("d"))
    for each in (second, third):
        await each.aclose()
