"""What happens when parts are missing: at start, and while serving."""

import asyncio
import os
import signal
import time
import uuid
from pathlib import Path

import pytest
from patience import DEADLINES, TIMEOUTS, eventually
from serving import Served, active, command, killed

import keek
import keek.aio
from keek_server.app import open_app
from keek_server.embedded import EmbeddedStack
from keek_server.embedded.postgres import running_postgres
from keek_server.errors import SetupError
from keek_server.settings import Settings

PERSONALISED = keek.FeedSource.FEED_SOURCE_PERSONALISED
TRENDING = keek.FeedSource.FEED_SOURCE_TRENDING


async def whole_feed(served: Served) -> bool:
    """Whether feeds come from all their sources again."""
    feed = await served.client.list_feed("u21")
    return not feed.degradations and any(item.source == PERSONALISED for item in feed.items)


async def test_without_a_release_feeds_wait_and_interactions_are_served(
    stack: EmbeddedStack, tmp_path: Path
) -> None:
    settings = stack.settings.model_copy(
        update={
            "data_dir": tmp_path,
            "database_url": f"sqlite+aiosqlite:///{tmp_path}/keek.db",
            "listen": "127.0.0.1:0",
            **DEADLINES,
        }
    )
    async with (
        open_app(settings) as app,
        keek.aio.Client(f"127.0.0.1:{app.port}", retry=None, timeouts=TIMEOUTS) as client,
    ):
        assert not await client.check_health("")
        assert not await client.check_health("keek.v1.FeedService")
        assert await client.check_health("keek.v1.InteractionService")
        with pytest.raises(keek.UnavailableError, match="no release"):
            await client.list_feed("u1")
        await client.import_videos([keek.Video(video_id="v1")])
        assert (await client.like("u1", "v1", wait_for_feed=True)).in_feed


async def test_a_killed_triton_is_restarted_and_personal_feeds_come_back(served: Served) -> None:
    assert await whole_feed(served)
    async with killed(served.stack.triton):
        # A vector that is kept would do until something changes.
        await served.client.like("u21", "v4", wait_for_feed=True)
        feed = await served.client.list_feed("u21")
    assert len(feed.items) == 10
    assert PERSONALISED in [degradation.source for degradation in feed.degradations]
    assert all(degradation.replaced_by for degradation in feed.degradations)
    await eventually(lambda: whole_feed(served))


async def test_a_killed_redis_costs_no_interaction_and_is_rebuilt(served: Served) -> None:
    assert await whole_feed(served)
    redis = served.stack.redis
    assert redis is not None
    os.kill(redis.pid, signal.SIGKILL)
    recorded = await served.client.like("u21", "v3")
    assert recorded.created
    feed = await served.client.list_feed("u21")
    assert len(feed.items) == 10
    assert "v3" not in [item.video_id for item in feed.items]

    async def rebuilt() -> bool:
        history = (await served.client.explain_feed("u21")).history_video_ids
        return await whole_feed(served) and history[-1] == "v3"

    await eventually(rebuilt)


async def test_a_killed_database_refuses_with_a_time_to_retry_and_the_retry_counts_once(
    stack: EmbeddedStack, tmp_path: Path
) -> None:
    async with running_postgres() as postgres:
        settings = stack.settings.model_copy(
            update={
                "data_dir": tmp_path,
                "database_url": postgres.service.url,
                "listen": "127.0.0.1:0",
                **DEADLINES,
            }
        )
        async with (
            open_app(settings) as app,
            keek.aio.Client(f"127.0.0.1:{app.port}", retry=None, timeouts=TIMEOUTS) as client,
        ):
            await client.import_videos([keek.Video(video_id="v1")])
            assert (await client.like("u1", "v1")).created
            event_id = str(uuid.uuid4())
            async with killed(postgres):
                with pytest.raises(keek.UnavailableError) as refused:
                    await client.like("u2", "v1", event_id=event_id)
            assert refused.value.retry_after_s is not None
            assert refused.value.retry_after_s > 0
            assert "127.0.0.1" not in str(refused.value)

            async def recorded() -> bool:
                try:
                    await client.like("u2", "v1", event_id=event_id)
                except keek.UnavailableError:
                    return False  # Nor is known whether it is stored.
                return True

            await eventually(recorded)
            again = await client.like("u2", "v1", event_id=event_id, wait_for_feed=True)
            assert not again.created
            assert again.in_feed
            (video,) = (await client.list_trending()).videos
            assert video.score == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("missing", ["redis", "triton", "database"])
async def test_a_part_missing_at_start_is_named_within_fifteen_seconds(
    stack: EmbeddedStack, tmp_path: Path, missing: str
) -> None:
    nowhere: dict[str, dict[str, object]] = {
        "redis": {"redis_url": "redis://127.0.0.1:1/0"},
        "triton": {"triton_url": "127.0.0.1:1"},
        "database": {"database_url": "postgresql+asyncpg://keek:secret@127.0.0.1:1/keek"},
    }
    own: dict[str, object] = {"data_dir": tmp_path, "database_url": f"sqlite+aiosqlite:///{tmp_path}/keek.db"}
    settings = stack.settings.model_copy(
        update={"listen": "127.0.0.1:0", "startup_timeout_s": 3.0, **own, **nowhere[missing]}
    )
    started = time.monotonic()
    with pytest.raises(SetupError, match=r"127\.0\.0\.1:1.*KEEK_") as refused:
        async with open_app(settings):
            pass
    assert time.monotonic() - started < 15
    assert "secret" not in str(refused.value)


async def test_the_command_says_what_is_missing_without_a_stack_trace(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        str(Path(__file__).parents[2] / ".venv" / "bin" / "keek-server"),
        "serve",
        env={
            **os.environ,
            "KEEK_DATA_DIR": str(tmp_path),
            "KEEK_REDIS_URL": "redis://127.0.0.1:1/0",
            "KEEK_STARTUP_TIMEOUT_S": "1",
        },
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"no Redis at redis://127.0.0.1:1/0" in errors
    assert b"Traceback" not in errors


def test_a_misspelt_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="personalized_share"):
        Settings(personalized_share=0.5)  # type: ignore[call-arg]


async def test_a_new_release_takes_over_under_load_without_an_error(served: Served) -> None:
    before = (await served.client.list_feed("u1")).release_id
    run = (await active(served.stack)).source
    done = asyncio.create_task(
        asyncio.to_thread(command, served.stack, "keek-train", "publish", "--run", run)
    )
    releases = set()
    while not done.done() or before == (await served.client.list_feed("u1")).release_id:
        feed = await served.client.list_feed("u1")
        assert len(feed.items) == 10
        assert not feed.degradations
        assert {item.release_id for item in feed.items} == {feed.release_id}
        releases.add(feed.release_id)
        await asyncio.sleep(0.005)
    assert done.result().returncode == 0, done.result().stderr
    assert releases >= {before}
