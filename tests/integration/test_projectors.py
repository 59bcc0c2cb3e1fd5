"""Who writes the projection: one projector at a time, under a lease."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from projecting import Parts, event, open_parts
from projection_steps import contents, project, running, small_settings, time_out_lease

from keek_server.embedded.stack import EmbeddedStack
from keek_server.interactions.writer import LeaseLostError


@pytest.fixture
async def parts(stack: EmbeddedStack, tmp_path: Path) -> AsyncIterator[Parts]:
    async with open_parts(small_settings(stack, tmp_path)) as opened:
        yield opened


async def test_one_of_several_projectors_acts_and_another_takes_over(parts: Parts) -> None:
    first, second = parts.projector(), parts.projector()
    async with running(second):
        async with running(first):
            await parts.log.append([event("u1", "v1")])
            assert await asyncio.gather(first.wait_for(1, 60), second.wait_for(1, 60)) == [True, True]
            assert [first.holds_lease, second.holds_lease].count(True) == 1
        await parts.log.append([event("u1", "v2")])
        assert await second.wait_for(2, 60)
        assert second.holds_lease


async def test_a_projector_that_dies_is_replaced_within_its_lease(parts: Parts) -> None:
    projector = parts.projector()
    # So that it does not run out before it is said to.
    parts.settings = parts.settings.model_copy(update={"projection_lease_s": 60.0})
    dead = parts.writer()
    assert await dead.acquire()
    async with running(projector):
        await parts.log.append([event("u1", "v1")])
        assert not await projector.wait_for(1, 0.3)
        await time_out_lease(parts)
        assert await projector.wait_for(1, 60)


async def test_who_lost_the_lease_can_no_longer_write(parts: Parts) -> None:
    await parts.log.append([event("u1", f"v{i}") for i in range(3)])
    await project(parts)
    current = await parts.writer().current()
    assert current is not None
    # Nobody renews these leases.
    parts.settings = parts.settings.model_copy(update={"projection_lease_s": 60.0})
    old, new = parts.writer(), parts.writer()
    lease = await old.acquire()
    assert lease
    await old.release(lease.token)
    newer = await new.acquire()
    assert newer
    assert int(newer.token.split(":")[0]) > int(lease.token.split(":")[0])
    await parts.log.append([event("u1", "v9")])
    rows = await parts.log.read(3, 10)
    for write in (
        old.apply(lease.token, current.number, 3, rows),
        old.publish(lease.token, 99),
        old.begin(lease.token, "x"),
        old.retract(lease.token),
    ):
        with pytest.raises(LeaseLostError):
            await write
    assert await new.apply(newer.token, current.number, 3, rows) == 4
    # The same rows again, as after an answer that was lost.
    assert await new.apply(newer.token, current.number, 3, rows) == 4
    assert [entry.video_id for entry in (await parts.projection.user("u1")).history][-1] == "v9"
    assert (await contents(parts))["seen:u1"]["v9"] == 4.0


async def test_waiting_for_the_projection_has_an_end(parts: Parts) -> None:
    assert not await parts.projector().wait_for(1, 0.05)
