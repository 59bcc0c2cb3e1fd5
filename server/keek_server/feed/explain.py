"""Why a video is in a feed, or absent."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from keek_server.feed.filters import FILTERS
from keek_server.feed.types import Candidate, FeedPage, FeedSource
from keek_server.retrieval.fresh import VECTORS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one video, and at which stage."""

    video_id: str
    served: bool
    stage: str
    detail: str


def explain(page: FeedPage, video_ids: Sequence[str], known: Collection[str]) -> Iterator[Verdict]:
    """A verdict on each of `video_ids`; those not in `known` are not in the catalogue."""
    for video_id in video_ids:
        yield (
            _served(page, video_id)
            or _removed(page, video_id)
            or _outranked(page, video_id)
            or _absent(page, video_id, known)
        )


def _served(page: FeedPage, video_id: str) -> Verdict | None:
    for place, item in enumerate(page.selection.items, 1):
        if item.video_id == video_id:
            detail = f"slot {place}, from {item.source.name.lower()}{_ordered_by(page, item.source)}"
            return Verdict(video_id, True, "mix", detail)
    return None


def _removed(page: FeedPage, video_id: str) -> Verdict | None:
    """What a filter says of it, whether a source proposed it or not."""
    owner = page.context.serving.fresh.index.value(video_id, "owners")
    candidate = Candidate(video_id, FeedSource.PERSONALISED, 0.0, 0 if owner is None else int(owner))
    for filter_ in FILTERS:
        if filter_.keeps(page.context, [candidate]) == [False]:
            return Verdict(video_id, False, filter_.name, filter_.detail)
    return None


def _outranked(page: FeedPage, video_id: str) -> Verdict | None:
    places = [
        f"number {place} of {total} from {candidate.source.name.lower()}{_ordered_by(page, candidate.source)}"
        for candidate, place, total in _ranked(page.candidates)
        if candidate.video_id == video_id
    ]
    if not places:
        return None
    return Verdict(
        video_id, False, "mix", f"others came first, or its owner's share was full: {', '.join(places)}"
    )


def _ordered_by(page: FeedPage, source: FeedSource) -> str:
    """Empty where the scores did it."""
    version = page.context.ranker_version
    return f", ordered by ranker version {version}" if version and source is FeedSource.PERSONALISED else ""


def _ranked(candidates: list[Candidate]) -> Iterator[tuple[Candidate, int, int]]:
    for source in {candidate.source for candidate in candidates}:
        own = [candidate for candidate in candidates if candidate.source is source]
        for place, candidate in enumerate(own, 1):
            yield candidate, place, len(own)


def _absent(page: FeedPage, video_id: str, known: Collection[str]) -> Verdict:
    if video_id not in known:
        return Verdict(video_id, False, "catalogue", "no such video is known")
    if page.context.serving.fresh.index.value(video_id, VECTORS) is None:
        return Verdict(video_id, False, "sources", "it has no vector in this release yet, and does not trend")
    if any(trace.source is FeedSource.PERSONALISED and trace.error for trace in page.sources):
        return Verdict(video_id, False, "sources", "no source proposed it, and the personalised one failed")
    return Verdict(video_id, False, "sources", "no source proposed it: too far from the user's vector")
