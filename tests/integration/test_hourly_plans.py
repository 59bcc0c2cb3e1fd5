"""What the hourly job finds to do: how much is new, to which run, and what of it is read."""

import asyncio
import uuid

import pytest
from release_serving import manifest

from keek_server.errors import KeekError, SetupError
from keek_server.interactions.append import Interaction
from keek_server.interactions.kinds import InteractionKind
from keek_server.interactions.log import InteractionLog
from keek_server.releases.plan import ReleaseState, Trial, TrialKind
from keek_server.releases.registry import ReleaseRegistry
from keek_server.settings import Settings
from keek_server.storage.database import Database
from keek_server.videos.catalogue import Catalogue
from keek_server.videos.changes import ChangeFeed
from keek_server.videos.video import Video
from keek_training.config import FineTuning
from keek_training.features import IS_NEW
from keek_training.hourly import reading
from keek_training.hourly.bases import choose_base, new_to, plan_round, published_release
from keek_training.hourly.reading import read_all, read_new
from keek_training.hourly.state import LogRange, Refusal, Round, Step
from keek_training.hourly.steps import HourlySteps
from keek_training.publishing.publish import HeldUpError
from keek_training.runs import Run


def trained(settings: Settings, name: str, **metrics: object) -> Run:
    run = Run.named(name, settings)
    run.start()
    run.write_metrics(metrics, [])
    return run


async def append(database: Database, user: str, count: int, kind: InteractionKind, first: int = 0) -> None:
    events = [
        Interaction(uuid.uuid4().hex, user, f"v{i % 7}", kind, 1_000_000 * (i + 1), "", ())
        for i in range(first, first + count)
    ]
    await InteractionLog(database).commit([events])


async def serve(database: Database, release_id: str, source: str, number: int = 1) -> ReleaseRegistry:
    registry = ReleaseRegistry(database)
    await registry.register(manifest(release_id, number).model_copy(update={"source": source}))
    await registry.activate(release_id, "test")
    return registry


async def test_the_base_is_the_run_that_serves_also_after_a_rollback(
    database: Database, settings: Settings
) -> None:
    assert await choose_base(database, settings, None) is None
    latest, first, second = (trained(settings, name) for name in ("latest", "first", "second"))
    assert await choose_base(database, settings, None) == latest
    await serve(database, "r1", "first", 1)
    registry = await serve(database, "r2", "second", 2)
    assert await choose_base(database, settings, None) == second
    await registry.roll_back("bad")
    assert await choose_base(database, settings, None) == first
    assert await choose_base(database, settings, "second") == second


async def test_a_release_that_is_no_run_of_ours_is_not_trained_over(
    database: Database, settings: Settings
) -> None:
    trained(settings, "latest")
    await serve(database, "r1", "a.onnx and b.onnx")
    with pytest.raises(SetupError, match=r"r1 serves, from a\.onnx and b\.onnx, which is no run .*--from"):
        await choose_base(database, settings, None)


async def test_a_round_needs_enough_that_is_new_since_the_base_and_since_a_refusal(
    database: Database, settings: Settings
) -> None:
    settings = settings.model_copy(update={"hourly_min_interactions": 10})
    await append(database, "u1", 20, InteractionKind.LIKE)
    log_id = (await InteractionLog(database).extent()).log_id
    run = trained(settings, "first", log={"log_id": log_id, "after_seq": 0, "last_seq": 15})
    await serve(database, "r1", "first")
    assert (
        await plan_round(database, settings, None, None)
        == "5 new interactions since the last run, fewer than 10"
    )
    await append(database, "u2", 30, InteractionKind.SKIP)
    assert isinstance(await plan_round(database, settings, None, None), str)
    await append(database, "u3", 5, InteractionKind.VIEW)
    planned = await plan_round(database, settings, None, None)
    assert isinstance(planned, Round)
    assert planned.base == run.name
    assert planned.new == LogRange(log_id=log_id, after_seq=15, last_seq=55)
    assert planned.new == await new_to(run, database)
    refusal = Refusal(run="bad", reason="", log_id=log_id, last_seq=55)
    assert "0 new interactions since run bad was refused" in str(
        await plan_round(database, settings, None, refusal)
    )
    other_log = refusal.model_copy(update={"log_id": "of another log"})
    assert isinstance(await plan_round(database, settings, None, other_log), Round)


async def test_many_new_videos_get_a_new_index_where_there_is_nothing_to_train_on(
    database: Database, settings: Settings
) -> None:
    settings = settings.model_copy(update={"hourly_min_videos": 10})
    trained(settings, "first")
    registry = await serve(database, "r1", "first", 1)
    catalogue = Catalogue(database)
    await catalogue.put([Video(f"v{i}", "o", [], 1.0, "", 0) for i in range(9)])
    assert isinstance(await plan_round(database, settings, None, None), str)
    await catalogue.put([Video(f"v{i}", "o", [], 1.0, "", 0) for i in range(5, 10)])
    planned = await plan_round(database, settings, None, None)
    assert isinstance(planned, Round)
    last_seq = await ChangeFeed(database).last()
    assert planned == Round(
        run="first",
        base="first",
        new=planned.new.model_copy(update={"last_seq": planned.new.after_seq}),
        replaces="r1",
        catalogue_seq=last_seq,
        step=Step.RANK,
    )
    # Once refused, it is tried again when as much is new again; what is new to train on counts as before.
    refusal = Refusal(run="first", reason="", log_id=planned.new.log_id, last_seq=0, catalogue_seq=last_seq)
    assert isinstance(await plan_round(database, settings, None, refusal), str)
    await catalogue.put([Video(f"w{i}", "o", [], 1.0, "", 0) for i in range(10)])
    assert isinstance(await plan_round(database, settings, None, refusal), Round)
    await append(database, "u1", 1000, InteractionKind.LIKE)
    trains = await plan_round(database, settings, None, refusal)
    assert isinstance(trains, Round)
    assert (trains.step, trains.replaces) == (Step.TRAIN, "")

    steps = HourlySteps(settings)
    assert await asyncio.to_thread(steps.is_current, planned)
    # There is no Triton here: publishing would fail. What was published before the round does not count.
    with pytest.raises(KeekError):
        await asyncio.to_thread(steps.publish, planned)
    await serve(database, "r2", "first", 2)
    assert await asyncio.to_thread(steps.publish, planned) == "r2"
    await serve(database, "r3", "other", 3)
    trained(settings, "other")
    assert not await asyncio.to_thread(steps.is_current, planned)
    assert await registry.active() == "r3"


async def test_nothing_is_published_while_a_release_is_tried(database: Database, settings: Settings) -> None:
    trained(settings, "first")
    registry = await serve(database, "r1", "first", 1)
    await registry.register(manifest("r2", 2))
    await registry.start_trial(Trial("r2", TrialKind.CANARY, 5.0), "try")
    await append(database, "u1", 2000, InteractionKind.LIKE)
    assert "r2 is being tried" in str(await plan_round(database, settings, None, None))


async def test_a_round_under_way_ends_no_trial_and_overrules_no_rollback(
    database: Database, settings: Settings
) -> None:
    trained(settings, "first")
    trained(settings, "second")
    await serve(database, "r1", "first", 1)
    registry = await serve(database, "r2", "second", 2)
    new = LogRange(log_id="log", after_seq=10, last_seq=20)
    under_way = Round(run="hourly-1", base="second", new=new, step=Step.PUBLISH)
    steps = HourlySteps(settings)
    await registry.start_trial(Trial("r1", TrialKind.CANARY, 5.0), "try")
    with pytest.raises(HeldUpError, match="r1 is being tried"):
        await asyncio.to_thread(steps.publish, under_way)
    await registry.roll_back("bad")
    with pytest.raises(HeldUpError, match="what serves is not second any more"):
        await asyncio.to_thread(steps.publish, under_way)


async def test_a_run_whose_release_was_tried_is_left_to_those_who_tried_it(
    database: Database, settings: Settings
) -> None:
    trained(settings, "first")
    registry = await serve(database, "r1", "first", 1)
    await registry.register(manifest("r2", 2).model_copy(update={"source": "hourly-1"}))
    new = LogRange(log_id="log", after_seq=10, last_seq=20)
    held_up = Round(run="hourly-1", base="first", new=new, step=Step.PUBLISH)
    steps = HourlySteps(settings)
    assert await asyncio.to_thread(steps.is_current, held_up)
    await registry.start_trial(Trial("r2", TrialKind.CANARY, 5.0), "try")
    await registry.end_trial("by itself: it fails")
    assert not await asyncio.to_thread(steps.is_current, held_up)


async def test_a_run_that_served_is_not_published_again_and_one_that_did_not_is(database: Database) -> None:
    registry = await serve(database, "r1", "first", 1)
    await registry.register(manifest("r2", 2).model_copy(update={"source": "second"}))
    assert await published_release(database, "first") == "r1"
    assert await published_release(database, "second") is None
    await serve(database, "r3", "third", 3)
    assert await published_release(database, "first") == "r1"


async def test_a_release_whose_note_a_crash_lost_is_found_and_not_published_again(
    database: Database, settings: Settings
) -> None:
    trained(settings, "latest")
    new = LogRange(log_id="log", after_seq=10, last_seq=20)
    lost = Round(run="hourly-1", base="latest", new=new, step=Step.PUBLISH)
    steps = HourlySteps(settings)
    assert await asyncio.to_thread(steps.is_current, lost)
    registry = await serve(database, "r1", "hourly-1", 1)
    assert await asyncio.to_thread(steps.is_current, lost)
    # There is no Triton here: publishing would fail.
    assert await asyncio.to_thread(steps.publish, lost) == "r1"
    trained(settings, "other")
    await serve(database, "r2", "other", 2)
    assert await asyncio.to_thread(steps.publish, lost) == "r1"
    assert not await asyncio.to_thread(steps.is_current, lost.model_copy(update={"run": "hourly-2"}))
    assert await registry.active() == "r2"


async def test_what_is_new_is_read_with_its_users_histories_and_a_sample_of_others(
    database: Database, settings: Settings
) -> None:
    await Catalogue(database).put([Video(f"v{i}", "o", [], 1.0, "", 0) for i in range(7)])
    for number in range(8):
        await append(database, f"old{number}", 20, InteractionKind.LIKE)
    await append(database, "both", 30, InteractionKind.LIKE)
    after = (await InteractionLog(database).extent()).last_seq
    await append(database, "both", 5, InteractionKind.LIKE, first=30)
    await append(database, "new", 3, InteractionKind.LIKE)
    extent = await InteractionLog(database).extent()
    await append(database, "later", 3, InteractionKind.LIKE)
    new = LogRange(log_id=extent.log_id, after_seq=after, last_seq=extent.last_seq)

    data = await read_new(settings, new, FineTuning(replay=1.0, rows_per_user=12), seed=1)
    rows = data.dataset.interactions.to_pylist()
    users = {row["user_id"] for row in rows}
    assert {"both", "new"} < users
    assert len(users) == 4
    assert "later" not in users
    assert [row["event_time_us"] for row in rows] == sorted(row["event_time_us"] for row in rows)
    marked = [(row["user_id"], row[IS_NEW]) for row in rows]
    assert (marked.count(("both", True)), marked.count(("both", False))) == (5, 7)
    assert marked.count(("new", True)) == 3
    assert sum(is_new for _, is_new in marked) == 8
    assert data.origin["log"] == new.model_dump()
    assert data.dataset.videos.num_rows == 7

    whole = await read_all(settings)
    assert whole.dataset.interactions.num_rows == 201
    assert IS_NEW not in whole.dataset.interactions.column_names
    capped = await read_new(settings, new, FineTuning(most_new=3), seed=1)
    assert sum(capped.dataset.interactions[IS_NEW].to_pylist()) == 3


async def test_what_comes_while_the_whole_log_is_read_is_left_to_the_next_training(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await Catalogue(database).put([Video(f"v{i}", "o", [], 1.0, "", 0) for i in range(7)])
    await append(database, "early", 50, InteractionKind.LIKE)
    last_seq = (await InteractionLog(database).extent()).last_seq

    async def more(*_: object) -> str:
        await append(database, "late", 5, InteractionKind.LIKE)
        return ""

    monkeypatch.setattr(reading, "next_clip_model", more)
    whole = await read_all(settings)
    assert whole.origin["log"]["last_seq"] == last_seq
    assert set(whole.dataset.interactions["user_id"].to_pylist()) == {"early"}
    assert whole.dataset.interactions.num_rows == 50


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # Keras is imported
async def test_a_log_that_teaches_no_ranker_leaves_the_one_that_there_is(
    database: Database, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    run = trained(settings, "first")
    run.write_ranker({"refused": ""})
    await serve(database, "r1", "first", 1)
    new = LogRange(log_id="log", after_seq=10, last_seq=20)
    again = Round(run="first", base="first", new=new, replaces="r1", step=Step.RANK)
    with caplog.at_level("INFO"):
        await asyncio.to_thread(HourlySteps(settings).rank, again)
    # The release has no files here.
    assert "run first gets no new ranker: " in caplog.text
    assert run.read_ranker() == {"refused": ""}


async def test_old_runs_of_the_job_alone_are_removed_and_none_that_may_serve(
    database: Database, settings: Settings
) -> None:
    settings = settings.model_copy(update={"releases_kept": 2})
    for name in ["latest", *(f"hourly-{number}" for number in range(1, 8))]:
        trained(settings, name)
    await serve(database, "r1", "hourly-1", 1)
    await serve(database, "r2", "hourly-2", 2)
    # Others were refused up to this one, which is bad.
    registry = await serve(database, "r7", "hourly-7", 7)
    await registry.register(manifest("r5", 5).model_copy(update={"source": "hourly-5"}), ReleaseState.REFUSED)
    assert {each.release_id for each in await registry.retire(2, ())} == {"r2", "r7"}
    await asyncio.to_thread(HourlySteps(settings, base="hourly-3").clean_up)
    left = {path.name for path in (settings.data_dir / "runs").iterdir()}
    assert left == {"latest", "hourly-2", "hourly-3", "hourly-6", "hourly-7"}
    await registry.roll_back("bad")
    base = await choose_base(database, settings, None)
    assert base is not None
    assert base.name == "hourly-2"
