"""Searches of one release: by what videos show, by who likes them, and for people."""

import asyncio
from dataclasses import dataclass
from itertools import compress

import numpy as np

from keek_server.errors import NotFoundError, SetupError
from keek_server.releases.live import LiveRelease
from keek_server.releases.opening import ServingRelease
from keek_server.releases.release import CLIP
from keek_server.retrieval.fresh import VECTORS
from keek_server.retrieval.live import LiveIndex
from keek_server.retrieval.query import Hits, Query
from keek_server.towers.clip import Clip
from keek_server.towers.features import Float32Array
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.decoding.decoder import Decoder
from keek_server.videos.filters import VideoFilter

LIMIT = 1000
"""The most that one search finds, over all its pages."""

_SIMILAR_CANDIDATES = LIMIT + 1
"""The same for every page: of more candidates, others would stand first."""
_REPEATS = 32
"""Found beyond what is asked for, in place of videos that stand twice."""
_LEAST_NORM = 1e-12

Ranking = list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found, and the release that it searched."""

    serving: ServingRelease
    scores: Ranking
    """Ids with their scores, best first, each id once."""


class Finder:
    """Answers from the release that is current when a search begins."""

    def __init__(self, live: LiveRelease, catalogue: Catalogue, decoder: Decoder) -> None:
        self._live = live
        self._catalogue = catalogue
        self._decoder = decoder

    async def by_text(self, text: str, filter_: VideoFilter, count: int) -> Found:
        """The videos that look like a text.

        Raises:
            SetupError: When the release has no CLIP, as for every search by CLIP.
            UnavailableError: When Triton does not answer.
        """
        serving, clip = self._clip()
        return await self._look_alikes(serving, await clip.texts.vector(text), filter_, count)

    async def by_image(self, image: bytes, filter_: VideoFilter, count: int) -> Found:
        """The videos that look like an image file.

        Raises:
            BadMediaError: When it is none.
        """
        serving, clip = self._clip()
        frame = await self._decoder.decode_image(image, clip.record.frame_shape)
        return await self._look_alikes(serving, await clip.images.vector(frame[None]), filter_, count)

    async def by_video(self, video_id: str, filter_: VideoFilter, count: int) -> Found:
        """The videos that look like a video, itself left out.

        Raises:
            NotFoundError: When the video has no clip vector that this release reads.
        """
        serving, _ = self._clip()
        own = await self._catalogue.clip_vector(video_id)
        if own is None or not serving.release.reads(own.clip_model):
            raise NotFoundError(f"no video {video_id!r} with a clip vector")
        vector = np.frombuffer(own.content, "<f2").astype(np.float32)
        found = await self._look_alikes(serving, vector, filter_, count + 1)
        return Found(serving, [hit for hit in found.scores if hit[0] != video_id][:count])

    async def similar(self, video_id: str, filter_: VideoFilter, count: int) -> Found:
        """The videos that the same people like, by the cosine of the video tower's vectors.

        Those with the largest dot products are compared: what few people like has a short vector, and the
        index does not find it.
        """
        serving = self._live.serving()
        vector = _vector_of(serving, video_id)
        query = Query(vector, _SIMILAR_CANDIDATES, filter_.allowed, among=filter_.rows)
        hits = await serving.side_searcher.search(query)
        ranking = await asyncio.to_thread(_by_cosine, serving.fresh.index, hits, vector)
        return Found(serving, [hit for hit in ranking if hit[0] != video_id][:count])

    async def audience(self, video_id: str, count: int) -> Found:
        """The users whose vectors have the largest dot product with a video's."""
        serving = self._live.serving()
        vector = _vector_of(serving, video_id)
        hits = await serving.audience_searcher.search(Query(vector, count + _REPEATS))
        return Found(serving, (await asyncio.to_thread(_by_score, hits))[:count])

    def _clip(self) -> tuple[ServingRelease, Clip]:
        serving = self._live.serving()
        if serving.clip is None:
            raise SetupError(f"release {serving.release.id} has no CLIP")
        return serving, serving.clip

    async def _look_alikes(
        self, serving: ServingRelease, vector: Float32Array, filter_: VideoFilter, count: int
    ) -> Found:
        query = Query(vector, count + _REPEATS, filter_.allowed, CLIP, among=filter_.rows)
        hits = await serving.side_searcher.search(query)
        return Found(serving, (await asyncio.to_thread(_by_score, hits))[:count])


def _vector_of(serving: ServingRelease, video_id: str) -> Float32Array:
    vector = serving.fresh.index.value(video_id, VECTORS)
    if vector is None:
        raise NotFoundError(f"no video {video_id!r} in release {serving.release.id}")
    return vector


def _by_score(hits: Hits) -> Ranking:
    """What was found, best first. What changes during the search may be found twice, old and new."""
    best: dict[str, float] = {}
    for id_, score in zip(hits.found_ids(), hits.scores.tolist(), strict=True):
        best.setdefault(id_, score)
    return list(best.items())


def _by_cosine(videos: LiveIndex, hits: Hits, vector: Float32Array) -> Ranking:
    """What was found, each once, by the cosine of its present vector with `vector`; best first."""
    ids = list(dict.fromkeys(hits.found_ids()))
    known, vectors = videos.vectors_of(ids)
    ids = list(compress(ids, known))
    cosines = _unit(vectors) @ _unit(vector[None])[0]
    order = np.argsort(-cosines, kind="stable")
    # A video that vanishes while this thread reads its vector has none.
    order = order[np.isfinite(cosines[order])]
    return [(ids[place], float(cosines[place])) for place in order]


def _unit(vectors: Float32Array) -> Float32Array:
    unit: Float32Array = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _LEAST_NORM)
    return unit
