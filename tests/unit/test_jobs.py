"""Jobs in the background: one that fails starts again, and all end with what they run beside."""

import asyncio

import pytest

from keek_server import jobs
from keek_server.jobs import running


async def test_a_job_that_fails_starts_again_and_one_that_is_done_does_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jobs, "_RESTART_S", 0.0)
    begun = {"flaky": 0, "short": 0}
    up = asyncio.Event()

    async def flaky() -> None:
        begun["flaky"] += 1
        if begun["flaky"] < 3:
            raise RuntimeError("not yet")
        up.set()
        await asyncio.Event().wait()

    async def short() -> None:
        begun["short"] += 1

    async with running({"flaky": flaky, "short": short}), asyncio.timeout(60):
        await up.wait()
    assert begun == {"flaky": 3, "short": 1}
    assert caplog.text.count("flaky failed, and starts again") == 2


async def test_all_end_also_where_a_cancellation_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_ASKED_AGAIN_S", 0.05)
    ended = []

    async def deaf() -> None:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            # As wait_for does where its own end comes at the same moment.
            await asyncio.sleep(600)
        finally:
            ended.append("deaf")

    async with asyncio.timeout(60):
        async with running({"deaf": deaf}):
            await asyncio.sleep(0)
    assert ended == ["deaf"]
