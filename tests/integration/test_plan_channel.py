"""Announcements of the plan, heard again when Redis has come back."""

import asyncio
import contextlib
import os
import signal

from background import beside

from keek_server.embedded import EmbeddedStack
from keek_server.errors import UnavailableError
from keek_server.interactions.connection import open_redis
from keek_server.interactions.keys import ProjectionKeys
from keek_server.releases.channel import PlanChannel
from keek_server.settings import Settings


async def test_announcements_are_heard_and_heard_again_after_redis_was_killed(
    stack_settings: Settings,
) -> None:
    async with EmbeddedStack(stack_settings) as stack, open_redis(stack.settings) as redis:
        channel = PlanChannel(redis, ProjectionKeys.of("keek", "a-log"), deadline_s=10.0)
        heard = asyncio.Event()
        async with beside(channel.listen(heard.set)):
            # What was announced before, it asks for when it has subscribed.
            await asyncio.wait_for(heard.wait(), 10)
            heard.clear()
            await channel.announce()
            await asyncio.wait_for(heard.wait(), 10)

            assert stack.redis is not None
            os.kill(stack.redis.pid, signal.SIGKILL)
            async with asyncio.timeout(60):
                heard.clear()
                while not heard.is_set():
                    with contextlib.suppress(UnavailableError, TimeoutError):
                        await channel.announce()
                        await asyncio.wait_for(heard.wait(), 0.2)
            # Not only the subscription that it makes anew, but what comes after it.
            await asyncio.sleep(1.5)
            heard.clear()
            await channel.announce()
            await asyncio.wait_for(heard.wait(), 10)
