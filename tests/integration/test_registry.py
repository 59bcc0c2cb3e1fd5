"""The registry: a change of the plan happened once or not at all, and a rollback finds its way."""

import asyncio
import uuid

import pytest
from manifests import bare_manifest

from keek_server.clock import now_us
from keek_server.errors import FailedPreconditionError, NotFoundError
from keek_server.releases.fleet import Figures, Fleet, ServerStatus
from keek_server.releases.plan import ReleaseState, Trial, TrialKind
from keek_server.releases.registry import ReleaseRegistry
from keek_server.storage.database import Database
from keek_server.storage.tables import activations


@pytest.fixture
async def registry(database: Database) -> ReleaseRegistry:
    """Knows the releases a to d, of which r is refused."""
    registry = ReleaseRegistry(database)
    for number, name in enumerate("abcdr"):
        state = ReleaseState.REFUSED if name == "r" else ReleaseState.READY
        await registry.register(bare_manifest(name, number), state)
    return registry


async def test_a_rollback_goes_to_what_was_before_and_never_to_what_it_left(
    registry: ReleaseRegistry,
) -> None:
    for name in "abc":
        await registry.activate(name, "")
    assert [(await registry.roll_back("")).release_id for _ in range(2)] == ["b", "a"]
    with pytest.raises(FailedPreconditionError, match="no release was active before a"):
        await registry.roll_back("")
    await registry.activate("d", "")
    assert (await registry.roll_back("")).release_id == "a"


async def test_rollbacks_pass_by_what_was_gone_back_from_however_often_it_was_tried(
    registry: ReleaseRegistry,
) -> None:
    for name in "cabab":
        await registry.activate(name, "")
    assert [(await registry.roll_back("")).release_id for _ in range(2)] == ["a", "c"]
    with pytest.raises(FailedPreconditionError, match="no release was active before c"):
        await registry.roll_back("")
    assert await registry.predecessor() is None


async def test_what_a_rollback_went_to_is_gone_back_to_though_the_history_has_no_way_to_it(
    registry: ReleaseRegistry, database: Database
) -> None:
    """As where two releases took turns, once."""
    for number, name in enumerate("ababab"):
        row = {"release_id": name, "activate_time_us": now_us(), "reason": "", "is_rollback": number > 2}
        row |= {"trial_release_id": "", "trial_kind": 0, "trial_percent": 0.0}
        async with database.write() as connection:
            await connection.execute(activations.insert().values(row))
    await registry.activate("c", "")
    assert await registry.predecessor() == "b"


async def test_a_trial_neither_makes_nor_moves_what_a_rollback_goes_to(registry: ReleaseRegistry) -> None:
    await registry.activate("a", "")
    await registry.activate("b", "")
    plan = await registry.start_trial(Trial("c", TrialKind.CANARY, 5.0), "try")
    assert (plan.release_id, plan.trial) == ("b", Trial("c", TrialKind.CANARY, 5.0))
    assert (await registry.end_trial("")).trial is None
    await registry.start_trial(Trial("c", TrialKind.SHADOW, 5.0), "")
    assert (await registry.activate("c", "it is good")).trial is None
    assert (await registry.roll_back("")).release_id == "b"
    await registry.start_trial(Trial("d", TrialKind.CANARY, 5.0), "")
    plan = await registry.roll_back("")
    assert (plan.release_id, plan.trial, plan.is_rollback) == ("a", None, True)


async def test_what_cannot_serve_is_refused_with_the_reason(registry: ReleaseRegistry) -> None:
    with pytest.raises(NotFoundError, match="'z'"):
        await registry.activate("z", "")
    with pytest.raises(FailedPreconditionError, match="publish one first"):
        await registry.roll_back("")
    await registry.activate("a", "")
    with pytest.raises(FailedPreconditionError, match="release r was refused"):
        await registry.activate("r", "")
    with pytest.raises(FailedPreconditionError, match="release r was refused"):
        await registry.start_trial(Trial("r", TrialKind.CANARY, 1.0), "")
    with pytest.raises(FailedPreconditionError, match="beside itself"):
        await registry.start_trial(Trial("a", TrialKind.CANARY, 1.0), "")
    with pytest.raises(FailedPreconditionError, match="no release is tried"):
        await registry.end_trial("")
    await registry.retire(0, ["c", "d"])
    with pytest.raises(FailedPreconditionError, match="files of release b are gone"):
        await registry.activate("b", "")
    assert (await registry.get("r")).state is ReleaseState.REFUSED
    assert await registry.active() == "a"


async def test_a_repeated_request_changes_nothing_more(registry: ReleaseRegistry) -> None:
    for name in "ab":
        await registry.activate(name, "")
    request_id = uuid.uuid4()
    first = await registry.roll_back("", request_id=request_id)
    assert await registry.roll_back("", request_id=request_id) == first
    assert await registry.plan() == first


async def test_of_changes_that_follow_the_same_plan_one_holds(registry: ReleaseRegistry) -> None:
    seq = (await registry.activate("a", "")).seq
    done = await asyncio.gather(
        *(registry.activate(name, "", after_seq=seq) for name in "bcd"), return_exceptions=True
    )
    refused = [each for each in done if isinstance(each, FailedPreconditionError)]
    assert len(refused) == 2
    assert (await registry.plan()) in done


async def test_releases_are_listed_newest_first_page_by_page(registry: ReleaseRegistry) -> None:
    page = await registry.list(3)
    assert [each.release_id for each in page] == ["r", "d", "c"]
    rest = await registry.list(3, before=(page[-1].create_time_us, page[-1].release_id))
    assert [each.release_id for each in rest] == ["b", "a"]


def test_a_canary_keeps_its_users_while_it_grows() -> None:
    users = [f"user-{number}" for number in range(20_000)]
    small, large = (
        {user for user in users if Trial("a", TrialKind.CANARY, percent).takes(user)} for percent in (5, 20)
    )
    assert small < large
    assert len(small) == pytest.approx(1000, rel=0.15)
    other = {user for user in users if Trial("b", TrialKind.CANARY, 5).takes(user)}
    assert len(small & other) < 120
    assert all(Trial("a", TrialKind.CANARY, 100).takes(user) for user in users)
    assert not any(Trial("a", TrialKind.CANARY, 0).takes(user) for user in users)


async def test_the_fleet_is_who_spoke_lately_and_a_plan_waits_for_all_of_it(
    registry: ReleaseRegistry, database: Database
) -> None:
    fleet = Fleet(database, stale_s=60.0)
    old = await registry.activate("a", "")
    plan = await registry.activate("b", "")
    now = now_us()

    def status(name: str, seq: int, age_s: float = 0.0) -> ServerStatus:
        figures = {"a": Figures(3, 1)}
        return ServerStatus(name, name, now, now - int(age_s * 1e6), seq, "a", figures=figures)

    await fleet.beat(status("one", plan.seq))
    await fleet.beat(status("two", old.seq))
    await fleet.beat(status("gone", old.seq, age_s=61.0))
    assert [server.name for server in await fleet.living()] == ["one", "two"]
    assert (await fleet.living())[0].figures == {"a": Figures(3, 1)}
    waited = await fleet.settled(plan, wait_s=0.1)
    assert not waited.converged
    assert [server.name for server in waited.pending] == ["two"]
    waiting = asyncio.create_task(fleet.settled(plan, wait_s=30.0))
    await asyncio.sleep(0.1)
    await fleet.beat(status("two", plan.seq))
    assert (await waiting).converged
    await fleet.leave("two")
    assert [server.name for server in await fleet.living()] == ["one"]
