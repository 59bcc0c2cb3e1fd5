"""Searches over a real index, while videos change under them."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from keek_server.releases.release import CLIP
from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.fresh import VECTORS, Column
from keek_server.retrieval.ids import IdTable
from keek_server.retrieval.index import Mask, Vectors
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.query import Hits, Query
from keek_server.retrieval.searcher import Searcher, search_executor
from keek_server.rpc.search import SearchServicer, pb
from keek_server.search.finder import LIMIT, Finder, Found
from keek_server.videos.filters import VideoFilter
from keek_server.videos.video import ClipVector

COUNT, DIMENSION = 3000, 16
IDS = [f"v{i}" for i in range(COUNT)]
COLUMNS = {VECTORS: Column(np.float32, (DIMENSION,)), CLIP: Column(np.float32, (DIMENSION,))}


def _twice(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.repeat(values, 2)


class Observed(LiveIndex):
    """An index in which, when torn, all that is found has just been replaced: old and new rows are found."""

    torn = False
    reranked_in: threading.Thread | None = None

    def search(self, queries: Sequence[Query]) -> list[Hits]:
        found = super().search(queries)
        if not self.torn:
            return found
        return [
            replace(hits, rows=_twice(hits.rows)[: query.k], scores=_twice(hits.scores)[: query.k])
            for hits, query in zip(found, queries, strict=True)
        ]

    def vectors_of(self, ids: Sequence[str]) -> tuple[Mask, Vectors]:
        self.reranked_in = threading.current_thread()
        return super().vectors_of(ids)


@dataclass
class Search:
    """A finder, and the index behind all its searches."""

    finder: Finder
    index: Observed


@pytest.fixture
def search() -> Iterator[Search]:
    rng = np.random.default_rng(5)
    # Of lengths that differ much, so that the order by cosine is another one than by dot product.
    lengths = rng.uniform(0.2, 2.0, (COUNT, 1))
    rows = (lengths * rng.normal(size=(COUNT, DIMENSION))).astype(np.float32)
    built, _ = build_index(rows, rows[:50], IndexOptions(exact_below=10_000, recall_target=1.0))
    table = IdTable.build(IDS)
    index = Observed(
        {VECTORS: built, CLIP: built}, table, {VECTORS: rows}, fresh_columns=COLUMNS, fresh_limit=1000
    )

    async def clip_vector(video_id: str) -> ClipVector:
        return ClipVector("", rows[IDS.index(video_id)].astype("<f2").tobytes())

    with search_executor() as executor:
        searcher = Searcher(index, executor)
        serving = SimpleNamespace(
            release=SimpleNamespace(id="r", reads=lambda _: True),
            fresh=SimpleNamespace(index=index),
            side_searcher=searcher,
            audience_searcher=searcher,
            clip=SimpleNamespace(record=SimpleNamespace(clip_model="", untrained=True)),
        )
        live: Any = SimpleNamespace(serving=lambda: serving)
        catalogue: Any = SimpleNamespace(clip_vector=clip_vector)
        decoder: Any = None
        yield Search(Finder(live, catalogue, decoder), index)


async def find(search: Search, method: str, count: int) -> Found:
    match method:
        case "similar":
            return await search.finder.similar("v7", VideoFilter(), count)
        case "by_video":
            return await search.finder.by_video("v7", VideoFilter(), count)
        case _:
            return await search.finder.audience("v7", count)


@pytest.mark.parametrize("method", ["similar", "by_video", "audience"])
async def test_what_changes_during_a_search_is_found_once(search: Search, method: str) -> None:
    search.index.torn = True
    found = [id_ for id_, _ in (await find(search, method, 20)).scores]
    assert len(set(found)) == len(found) == 20


@pytest.mark.parametrize("method", ["ListSimilarVideos", "SearchVideos"])
async def test_ten_pages_hold_a_thousand_different_videos_in_one_order(search: Search, method: str) -> None:
    servicer = SearchServicer(search.finder)
    request: Any = pb.ListSimilarVideosRequest if method == "ListSimilarVideos" else pb.SearchVideosRequest
    shown, scores, token = [], [], ""
    for number in range(10):
        page = await getattr(servicer, method)(request(video_id="v7", page_size=100, page_token=token), None)
        shown += [video.video_id for video in page.videos]
        scores += [video.score for video in page.videos]
        token = page.next_page_token
        assert bool(token) == (number < 9)
    assert len(set(shown)) == len(shown) == LIMIT
    assert scores == sorted(scores, reverse=True)
    assert "v7" not in shown


async def test_similar_videos_are_ranked_off_the_event_loop(search: Search) -> None:
    await search.finder.similar("v7", VideoFilter(), 10)
    assert search.index.reranked_in not in (None, threading.current_thread())
