"""The benchmark of bad videos fails when it should."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from benchmarks.bad_videos import Outcome, cancel_all, decoding_children

from keek_server.videos.decoding.worker import Worker

_NOBODY = 2**22 + os.getpid()
"""More than any process id, and that of no other run of these tests on this machine."""


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"tried": 0}, False),
        ({"other_uploads": 0}, False),
        ({"other_uploads_failed": 1}, False),
        ({"wrong": {"a.mp4": "accepted"}}, False),
        ({"children_left": 1}, False),
        ({"server_restarts": 1}, False),
        ({"parent_rss_growth": 65 * 2**20}, False),
    ],
    ids=str,
)
def test_it_passes_only_when_all_was_tried_and_nothing_went_wrong(
    changes: dict[str, Any], *, passed: bool
) -> None:
    fields = {"tried": 3, "refused": 3, "other_uploads": 5, "parent_rss_growth": 2**20}
    assert Outcome(**(fields | changes)).passed is passed


async def test_an_upload_that_ended_before_it_was_told_to_is_an_error() -> None:
    async def dies() -> None:
        raise RuntimeError("gone")

    tasks = [asyncio.create_task(dies()), asyncio.create_task(asyncio.sleep(60))]
    await asyncio.sleep(0)
    with pytest.raises(ExceptionGroup, match="ended") as failed:
        await cancel_all(tasks)
    assert [str(error) for error in failed.value.exceptions] == ["gone"]
    await cancel_all([asyncio.create_task(asyncio.sleep(60))])


def _found(server: int, pid: int) -> set[int]:
    """For a moment, a process that has just been started still has its parent's command line."""
    deadline = time.monotonic() + 60.0
    while pid not in (found := set(decoding_children(server))) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


async def test_a_child_is_found_as_long_as_it_lives() -> None:
    # Servers of other tests, which run in this process, have children as well, and replace them.
    worker = Worker()
    try:
        assert worker.pid in _found(os.getpid(), worker.pid)
    finally:
        await worker.aclose()
    assert worker.pid not in decoding_children(os.getpid())


def test_a_child_is_found_although_its_parent_has_gone() -> None:
    sleeper = (
        f'"{sys.executable}" -c "import time; time.sleep(60)" keek_server.videos.decoding.child {_NOBODY}'
    )
    shell = ["sh", "-c", f"{sleeper} >/dev/null 2>&1 & echo $!"]
    pid = int(subprocess.run(shell, capture_output=True, check=True).stdout)
    try:
        assert _found(_NOBODY, pid) == {pid}
    finally:
        os.kill(pid, signal.SIGKILL)
