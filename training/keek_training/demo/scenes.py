"""What the demonstration shows with a running server: feeds, who watches, a like, a video that takes off."""

import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import keek

_PAGE = 10
_SKIPPED = 3
"""Each third video of a page."""
_LIKES = 3
_FANS = 12
_WARM_UP = 20
_TIMED = 300
_READY_S = 60.0
_POLL_S = 0.01


@dataclass(slots=True)
class Scene:
    """One thing that was shown: a line of the table, and entries of the JSON."""

    title: str
    outcome: str
    took_ms: float
    facts: dict[str, object] = field(default_factory=dict)


def stream_a_feed(client: keek.Client, user_id: str) -> Scene:
    """Streams three pages: mixed, without a repeat."""
    started = time.perf_counter()
    pages = list(client.stream_feed(user_id, page_count=3, page_size=_PAGE))
    took_ms = (time.perf_counter() - started) * 1000
    items = [item for page in pages for item in page.items]
    sources = Counter(
        keek.FeedSource.Name(item.source).removeprefix("FEED_SOURCE_").lower() for item in items
    )
    distinct = len({item.video_id for item in items})
    mix = ", ".join(f"{count} {source}" for source, count in sources.most_common())
    facts: dict[str, object] = {
        "feed_items": len(items),
        "personalised": sources["personalised"],
        "trending": sources["trending"],
        "popular": sources["popular"],
        "distinct_items": distinct,
        "release": pages[0].release_id,
    }
    return Scene(
        f"stream 3 pages to {user_id}", f"{len(items)} videos ({distinct} distinct): {mix}", took_ms, facts
    )


def watch_a_feed(client: keek.Client, user_id: str) -> Scene:
    """Watches most of some videos of a page, passes over the others, and says how long."""
    started = time.perf_counter()
    watched_s = length_s = 0.0
    items = client.list_feed(user_id, page_size=_PAGE).items
    for place, item in enumerate(items):
        duration_s = client.get_video(item.video_id).duration_s
        act, share = (client.skip, 0.1) if place % _SKIPPED == 0 else (client.view, 0.8)
        act(user_id, item.video_id, watched_s=share * duration_s)
        watched_s, length_s = watched_s + share * duration_s, length_s + duration_s
    took_ms = (time.perf_counter() - started) * 1000
    outcome = f"{watched_s:.0f} of {length_s:.0f} seconds of {len(items)} videos"
    return Scene(f"{user_id} watches a page", outcome, took_ms, {"watched_s": round(watched_s, 1)})


def like_and_look_again(client: keek.Client, user_id: str) -> Scene:
    """Likes videos unlike the user's own, and compares the personalised part of the feed.

    The liked videos themselves leave the feed in any case; what counts is what else moved.
    """
    before = _personalised(client, user_id)
    liked = _something_else(client, before)
    started = time.perf_counter()
    for video_id in liked:
        client.like(user_id, video_id, wait_for_feed=True)
    after = _personalised(client, user_id)
    took_ms = (time.perf_counter() - started) * 1000
    new = [video_id for video_id in after if video_id not in before]
    still = [video_id for video_id in before if video_id not in liked]
    changed = after[: len(still)] != still
    outcome = f"{len(new)} of {len(after)} personalised videos are new in the very next feed"
    return Scene(
        f"{user_id} likes {len(liked)} videos", outcome, took_ms, {"like_changed_next_feed": changed}
    )


def make_a_video_viral(client: keek.Client, fans: list[str], viewer: str) -> Scene:
    """Several users like one video that does not trend; it reaches a user who had no part in it."""
    trending = {video.video_id for video in client.list_trending(page_size=1000).videos}
    history = set(client.explain_feed(viewer).history_video_ids)
    video_id = next(
        video.video_id
        for video in client.iter_videos()
        if video.video_id not in trending and video.video_id not in history
    )
    for fan in fans[:_FANS]:
        client.like(fan, video_id, wait_for_feed=True)
        client.share(fan, video_id, wait_for_feed=True)
    started = time.perf_counter()
    items = client.list_feed(viewer, page_size=_PAGE).items
    took_ms = (time.perf_counter() - started) * 1000
    source = keek.FeedSource.FEED_SOURCE_TRENDING
    reached = any(item.video_id == video_id and item.source == source for item in items)
    outcome = f"{video_id} is {'' if reached else 'not '}among the trending videos of {viewer}"
    facts: dict[str, object] = {"viral_video_reached_other_user": reached}
    return Scene(f"{len(fans[:_FANS])} users like {video_id}", outcome, took_ms, facts)


def upload_a_clip(client: keek.Client, clip: Path, video_id: str) -> Scene:
    """Uploads a file, waits until it is recommendable, and finds it by a picture of it."""
    started = time.perf_counter()
    video = client.upload_video(clip, keek.Video(video_id=video_id, title="A disc", tags=["demo"]))
    acknowledged_s = time.perf_counter() - started
    _wait_until_recommendable(client, video_id)
    took_s = time.perf_counter() - started
    found = client.search_videos("a bright disc on blue", page_size=5)
    similar = client.list_similar_videos(video_id, page_size=1)
    reason = " (by an untrained CLIP: it means nothing)" if found.clip_untrained else ""
    place = next((i for i, hit in enumerate(found.videos, 1) if hit.video_id == video_id), 0)
    outcome = (
        f"{video.width}x{video.height}, {video.duration_s:.1f} s; durable after {acknowledged_s:.2f} s, "
        f"recommendable after {took_s:.2f} s; number {place} for a text{reason}"
    )
    facts: dict[str, object] = {
        "upload_acknowledged_s": round(acknowledged_s, 3),
        "upload_recommendable_s": round(took_s, 3),
        "upload_recommendable": bool(similar.videos),
        "clip_model": found.clip_model,
        "clip_untrained": found.clip_untrained,
    }
    return Scene(f"upload {clip.name}", outcome, took_s * 1000, facts)


def _wait_until_recommendable(client: keek.Client, video_id: str) -> None:
    """Until the release has a vector of it."""
    for _ in client.watch_video(video_id, timeout_s=_READY_S):
        pass
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            client.list_similar_videos(video_id, page_size=1)
        except keek.NotFoundError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return


def time_feeds(client: keek.Client, users: list[str]) -> Scene:
    """Latency of ListFeed, one call after the other, over many users."""
    calls_ms = []
    for call in range(_WARM_UP + _TIMED):
        started = time.perf_counter()
        client.list_feed(users[call % len(users)], page_size=_PAGE)
        calls_ms.append((time.perf_counter() - started) * 1000)
    cuts = statistics.quantiles(calls_ms[_WARM_UP:], n=100)
    facts: dict[str, object] = {
        "list_feed_p50_ms": round(cuts[49], 2),
        "list_feed_p99_ms": round(cuts[98], 2),
    }
    return Scene(
        f"{_TIMED} feeds of {len(users)} users",
        f"p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms",
        cuts[49],
        facts,
    )


def _personalised(client: keek.Client, user_id: str) -> list[str]:
    source = keek.FeedSource.FEED_SOURCE_PERSONALISED
    items = client.list_feed(user_id, page_size=3 * _PAGE).items
    return [item.video_id for item in items if item.source == source]


def _something_else(client: keek.Client, feed: list[str]) -> list[str]:
    """Videos of one tag that the feed's videos do not have."""
    own = {tag for video_id in feed for tag in client.get_video(video_id).tags}
    by_tag: dict[str, list[str]] = {}
    for video in client.iter_videos():
        for tag in video.tags:
            if tag in own:
                continue
            by_tag.setdefault(tag, []).append(video.video_id)
            if len(by_tag[tag]) == _LIKES:
                return by_tag[tag]
    return [video.video_id for video in client.list_videos(page_size=_LIKES).videos]
