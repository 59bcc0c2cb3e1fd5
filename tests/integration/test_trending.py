"""What trends and rises: exact scores, pages, scopes, watching; in a real Redis and over gRPC."""

import asyncio
import math
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from background import beside
from projecting import LIKE, SAVE, SKIP, VIEW, Parts, event, open_parts

from keek_server.clock import now_us
from keek_server.embedded.stack import EmbeddedStack
from keek_server.errors import SetupError
from keek_server.interactions.append import Interaction
from keek_server.interactions.kinds import InteractionKind, TrendingScope
from keek_server.interactions.trending import Position
from keek_server.interactions.watch import TrendingWatch
from keek_server.settings import Settings
from keek_server.videos.slots import Slots


@pytest.fixture
async def parts(stack: EmbeddedStack, tmp_path: Path) -> AsyncIterator[Parts]:
    settings = Settings(
        data_dir=tmp_path,
        redis_url=stack.settings.redis_url,
        redis_deadline_s=10.0,
        trending_scopes=frozenset(TrendingScope),
    )
    async with open_parts(settings) as opened:
        yield opened


async def record(parts: Parts, events: list[Interaction]) -> None:
    """Stores events and waits until they are projected."""
    appended = await parts.log.append(events)
    projector = parts.projector()
    async with beside(projector.run()):
        assert await projector.wait_for(appended.seq, 60)


async def top_ids(parts: Parts, scope: str = "") -> list[str]:
    return [video.video_id for video in (await parts.trending.top(1000, scope=scope)).videos]


async def test_scores_are_the_exact_decayed_sum_of_what_counts(parts: Parts) -> None:
    """Late and shuffled events, repeats within a window, kinds that weigh nothing."""
    rng = random.Random(3)
    events = [
        event(f"u{rng.randrange(30)}", f"v{rng.randrange(20)}", rng.choice([LIKE, VIEW, SKIP]), age_s=age)
        for age in (rng.uniform(0, 60 * 3600) for _ in range(800))
    ]
    for start in range(0, 800, 200):
        await record(parts, events[start : start + 200])
    now = now_us()
    half_life_us, window_us = (
        parts.settings.trending_half_life_s * 1e6,
        parts.settings.trending_window_s * 1e6,
    )
    counted: dict[tuple[str, str, InteractionKind, int], Interaction] = {}
    for one in events:
        window = math.floor(one.event_time_us / window_us)
        counted.setdefault((one.user_id, one.video_id, one.kind, window), one)
    exact: dict[str, float] = {}
    for one in counted.values():
        weight = parts.settings.interaction_weights.get(one.kind, 0.0)
        decayed = weight * 0.5 ** ((now - one.event_time_us) / half_life_us)
        exact[one.video_id] = exact.get(one.video_id, 0.0) + decayed
    trending = (await parts.trending.top(100)).videos
    assert [video.video_id for video in trending] == sorted(exact, key=exact.__getitem__, reverse=True)
    for video in trending:
        assert video.score == pytest.approx(exact[video.video_id], rel=1e-4)


async def test_one_user_cannot_make_a_video_trend_alone(parts: Parts) -> None:
    await record(parts, [event("bot", "v1") for _ in range(500)] + [event("u1", "v2"), event("u2", "v2")])
    assert await top_ids(parts) == ["v2", "v1"]


async def test_a_user_counts_once_more_in_the_next_window_and_for_another_kind(parts: Parts) -> None:
    window_s = parts.settings.trending_window_s
    await record(parts, [event("u1", "v1"), event("u1", "v1", SAVE), event("u1", "v1", age_s=window_s)])
    (video,) = (await parts.trending.top(10)).videos
    # The earlier window adds 1 %; a minute until this is read takes 0.1 %.
    assert video.score == pytest.approx(1.0 + 2.0 + 0.5 ** (72 / 10.8), rel=1e-3)


async def test_what_is_older_than_the_window_does_not_trend(parts: Parts) -> None:
    await record(parts, [event("u1", "old", age_s=12 * 24 * 3600), event("u1", "new", age_s=3600)])
    assert await top_ids(parts) == ["new"]


async def test_pages_hold_each_video_once_also_among_equals_and_while_videos_move_up(parts: Parts) -> None:
    at = now_us() - 1_000_000
    equals = [Interaction(event("u", "v").event_id, f"u{i}", f"v{i:02d}", LIKE, at) for i in range(30)]
    await record(parts, equals)
    shown: list[str] = []
    position = Position()
    for page_number in range(10):
        page = await parts.trending.top(7, after=position)
        shown += [video.video_id for video in page.videos]
        position = page.end
        if page_number == 1:
            await record(parts, [event("fan", shown[3]), event("fan", "new")])
        if len(page.videos) < 7:
            break
    assert len(shown) == len(set(shown))
    # One moved away from among the equals; it may cost one of the others its place, no more.
    assert len(shown) >= 29
    assert "new" not in shown


async def test_scopes_count_their_own_interactions(parts: Parts) -> None:
    await record(
        parts,
        [
            event("u1", "v1", region="de", tags=("cats", "sea", "cats")),
            event("u2", "v1", region="fr", tags=("cats",)),
            event("u1", "v2", region="de"),
            event("u2", "v2", region="de", tags=("sea",)),
        ],
    )
    region, tag = TrendingScope.REGION, TrendingScope.TAG
    trending = parts.trending
    assert await top_ids(parts, trending.scope(region, "de")) == ["v2", "v1"]
    assert await top_ids(parts, trending.scope(region, "fr")) == ["v1"]
    assert await top_ids(parts, trending.scope(tag, "cats")) == ["v1"]
    (cats,) = (await trending.top(10, scope=trending.scope(tag, "cats"))).videos
    assert cats.score == pytest.approx(2.0, rel=1e-3)
    assert await top_ids(parts, trending.scope(tag, "nothing")) == []


async def test_a_scope_that_is_not_kept_is_refused_with_the_setting_to_change(parts: Parts) -> None:
    settings = parts.settings.model_copy(update={"trending_scopes": frozenset({TrendingScope.TAG})})
    trending = type(parts.trending)(parts.projection, settings)
    with pytest.raises(SetupError, match="KEEK_TRENDING_SCOPES"):
        trending.scope(TrendingScope.REGION, "de")


async def test_a_steady_video_rises_by_one_and_a_burst_by_much(parts: Parts) -> None:
    settings = parts.settings
    # Likes at a steady rate for ten long half-lives, and the same number within the last minutes.
    step_s = 600.0
    count = int(10 * settings.trending_half_life_s / step_s)
    steady = [event(f"u{i}", "steady", age_s=i * step_s) for i in range(count)]
    burst = [event(f"u{i}", "burst", age_s=i % 60) for i in range(60)]
    single = [event("u1", "single")]
    await record(parts, steady + burst + single)
    first, second = await parts.trending.rising(10)
    assert [first.video_id, second.video_id] == ["burst", "steady"]
    # One who likes it once is no rise, however new the video is.
    assert first.score == pytest.approx(settings.trending_half_life_s / settings.rising_half_life_s, rel=0.05)
    assert second.score == pytest.approx(1.0, rel=0.1)


async def test_rising_pages_by_offset(parts: Parts) -> None:
    await record(parts, [event(f"u{i}", f"v{n}") for n in range(5) for i in range(4 + n)])
    everything = [video.video_id for video in await parts.trending.rising(10)]
    pages = [await parts.trending.rising(2, offset=offset) for offset in (0, 2, 4, 6)]
    assert [video.video_id for page in pages for video in page] == everything
    assert len(everything) == 5


async def test_watchers_share_one_reader_and_see_every_change(parts: Parts) -> None:
    reads = 0

    async def read() -> list[object]:
        nonlocal reads
        reads += 1
        return (await parts.trending.top(100)).videos  # type: ignore[return-value]

    await record(parts, [event("u1", "v1")])
    watch = TrendingWatch(Slots(2, "watchers"))
    watchers = [watch.lists("top", read, limit) for limit in (1, 10)]  # type: ignore[arg-type]
    assert [[v.video_id for v in await anext(watcher)] for watcher in watchers] == [["v1"], ["v1"]]
    await record(parts, [event("u2", "v2", SAVE)])
    short, long = await asyncio.wait_for(asyncio.gather(*(anext(watcher) for watcher in watchers)), 20)
    assert [v.video_id for v in short] == ["v2"]
    assert [v.video_id for v in long] == ["v2", "v1"]
    before = reads
    waiting = [asyncio.create_task(anext(watcher)) for watcher in watchers]  # type: ignore[arg-type]
    await asyncio.sleep(1.1)
    assert reads - before <= 5
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for watcher in watchers:
        await watcher.aclose()
    before = reads
    await asyncio.sleep(0.6)
    assert reads <= before + 1
