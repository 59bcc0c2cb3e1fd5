"""Workers on one port: real processes, with a release, killed, restarted and stopped under load."""

import asyncio
import os
import re
import signal
import sys
import urllib.request
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from benchmarks.server_process import variables
from patience import DEADLINES, TIMEOUTS, eventually

import keek
import keek.aio
from keek_server.embedded import EmbeddedStack
from keek_server.embedded.ports import HOST, free_port
from keek_server.embedded.procfs import process_status
from keek_server.settings import Settings
from keek_server.workers.process import spawn, stop

WORKERS = 2
CONNECTIONS = 16
OWN_CONNECTION = {"grpc.use_local_subchannel_pool": 1}


@dataclass
class Supervised:
    """A running `keek-server serve --workers`."""

    process: asyncio.subprocess.Process
    settings: Settings

    @property
    def address(self) -> str:
        return self.settings.listen

    def pids(self) -> set[int]:
        """Of the workers."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return set(map(int, children.read_text().split()))

    async def metric(self, pattern: str) -> float:
        """The sum of the samples whose lines begin like that."""

        def scrape() -> str:
            with urllib.request.urlopen(
                f"http://{self.settings.metrics_listen}/metrics", timeout=10
            ) as answer:
                return str(answer.read(), "utf-8")

        lines = re.findall(rf"^{pattern}[^\n]* (\S+)$", await asyncio.to_thread(scrape), re.MULTILINE)
        return sum(map(float, lines))

    async def until_serving(self, count: int = WORKERS) -> None:
        async with asyncio.timeout(60):
            while True:
                with suppress(OSError):
                    if await self.metric("keek_workers_serving") == count:
                        return
                assert self.process.returncode is None
                await asyncio.sleep(0.1)


@asynccontextmanager
async def supervised(stack: EmbeddedStack) -> AsyncIterator[Supervised]:
    own: dict[str, object] = {
        "listen": f"{HOST}:{free_port()}",
        "interactions_listen": f"{HOST}:{free_port()}",
        "metrics_listen": f"{HOST}:{free_port()}",
        # What is tested is who answers, not how fast on a busy machine.
        **DEADLINES,
        "worker_ready_s": 60.0,
    }
    settings = stack.settings.model_copy(update=own)
    process = await spawn(["serve", "--workers", str(WORKERS)], variables(settings))
    try:
        running = Supervised(process, settings)
        await running.until_serving()
        yield running
    finally:
        assert await stop(process, 60)


@pytest.fixture
async def workers(published: EmbeddedStack) -> AsyncIterator[Supervised]:
    async with supervised(published) as running:
        yield running


async def test_workers_share_the_port_of_interactions_as_well(workers: Supervised) -> None:
    own = workers.settings.interactions_listen
    assert own is not None
    for _ in range(4):
        async with keek.aio.Client(own, options=OWN_CONNECTION, timeouts=TIMEOUTS) as client:
            assert await client.check_health("keek.v1.InteractionService")
            with pytest.raises(keek.UnimplementedError):
                await client.list_feed("u1")


async def test_a_killed_worker_takes_its_own_connections_alone_and_is_replaced(workers: Supervised) -> None:
    before = workers.pids()
    assert len(before) == WORKERS
    clients = [
        keek.aio.Client(workers.address, retry=None, options=OWN_CONNECTION, timeouts=TIMEOUTS)
        for _ in range(CONNECTIONS)
    ]

    async def both_are_named() -> bool:
        names = {server.name for server in (await clients[0].list_releases()).rollout.servers}
        return {name.rpartition("#")[2] for name in names} >= {"1", "2"}

    try:
        await asyncio.gather(*(client.__aenter__() for client in clients))
        pages = await asyncio.gather(*(client.list_feed("u1") for client in clients))
        assert all(len(page.items) == 10 for page in pages)
        assert await workers.metric(r"keek_rpc_seconds_count\{.*ListFeed") == CONNECTIONS
        await eventually(both_are_named)
        watches = [client.watch_trending() for client in clients]
        ended = [asyncio.create_task(_watch(watch)) for watch in watches]
        await asyncio.sleep(1.0)
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        await eventually(lambda: any(task.done() for task in ended))
        await asyncio.sleep(1.0)
        # The kernel spreads connections by their addresses: all to one of two has odds of 1 to 32,768.
        assert not all(task.done() for task in ended)
        for task in ended:
            task.cancel()
        await asyncio.wait(ended)
        async with keek.aio.Client(workers.address, options=OWN_CONNECTION, timeouts=TIMEOUTS) as client:
            for _ in range(10):
                assert len((await client.list_feed("u1")).items) == 10
        await eventually(lambda: killed not in workers.pids())
        await workers.until_serving()
        assert len(workers.pids() & before) == WORKERS - 1
        assert await workers.metric("keek_worker_restarts_total") == 1
        # What the dead one counted is not lost.
        assert await workers.metric(r"keek_rpc_seconds_count\{.*ListFeed") >= CONNECTIONS + 10
    finally:
        for client in clients:
            await client.close()


async def _watch(stream: AsyncIterator[object]) -> None:
    with suppress(keek.KeekError):
        async for _ in stream:
            pass


@dataclass
class Load:
    """Callers with the client's own retry policy, until stopped."""

    address: str
    calls: int = 0
    failed: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    stopped: bool = False

    async def run(self, number: int) -> None:
        async with keek.aio.Client(self.address, options=OWN_CONNECTION, timeouts=TIMEOUTS) as client:
            while not self.stopped:
                event_id = str(uuid.uuid4())
                try:
                    feed = await client.list_feed(f"u{number}")
                    assert len(feed.items) == 10
                    await client.like(f"u{number}", feed.items[0].video_id, event_id=event_id)
                    pages = [page async for page in client.stream_feed(f"u{number}", page_count=3)]
                    assert len(pages) == 3
                except (keek.KeekError, AssertionError) as error:
                    self.failed.append(repr(error))
                self.calls += 3


async def test_a_rolling_restart_under_load_loses_no_call(workers: Supervised) -> None:
    before = workers.pids()
    load = Load(workers.address)
    callers = [asyncio.create_task(load.run(number)) for number in range(1, 9)]
    await eventually(lambda: load.calls > 50)
    workers.process.send_signal(signal.SIGHUP)
    # Under load, on two cores, a new worker takes half a minute to start.
    await eventually(lambda: not before & workers.pids() and len(workers.pids()) == WORKERS, within_s=150)
    seen = load.calls
    await eventually(lambda: load.calls > seen + 50)
    load.stopped = True
    await asyncio.gather(*callers)
    assert load.failed == []
    assert await workers.metric("keek_worker_restarts_total") == 0
    assert await workers.metric("keek_workers_serving") == WORKERS


async def test_at_sigterm_streams_end_as_unavailable_and_the_parent_with_0(published: EmbeddedStack) -> None:
    async with supervised(published) as workers, keek.aio.Client(workers.address, retry=None) as client:
        watch = client.watch_trending()
        await anext(aiter(watch))
        pids = workers.pids()
        workers.process.terminate()
        with pytest.raises(keek.UnavailableError):
            async for _ in watch:
                pass
        async with asyncio.timeout(30):
            assert await workers.process.wait() == 0
        assert not any(process_status(pid) for pid in pids)


@pytest.mark.parametrize("arguments", [["serve"], ["serve", "--workers", "2"]])
async def test_another_server_on_the_port_is_refused(workers: Supervised, arguments: list[str]) -> None:
    settings = workers.settings.model_copy(update={"metrics_listen": None})
    other = await _refused(arguments, settings)
    assert f"cannot listen on {workers.address}" in other


async def test_workers_that_cannot_start_are_given_up_with_the_reason(published: EmbeddedStack) -> None:
    nowhere = {"redis_url": "redis://127.0.0.1:1/0", "startup_timeout_s": 1.0, "listen": f"{HOST}:0"}
    said = await _refused(["serve", "--workers", "2"], published.settings.model_copy(update=nowhere))
    assert "no Redis at" in said
    assert said.splitlines()[-1].startswith("keek-server: worker ")


async def _refused(arguments: list[str], settings: Settings) -> str:
    """What is said by a server that does not start."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "keek_server", *arguments),
        env={**os.environ, **variables(settings)},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(60):
            _, said = await process.communicate()
    finally:
        await stop(process, 0.0)
    assert process.returncode == 1
    return said.decode()
