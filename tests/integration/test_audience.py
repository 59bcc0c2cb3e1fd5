"""Users who were active get their new vectors, however a release came; on a real log and Redis."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from background import beside
from projecting import Parts, event, open_parts

from keek_server.clock import now_us
from keek_server.embedded.stack import EmbeddedStack
from keek_server.errors import UnavailableError
from keek_server.feed.history import user_vector
from keek_server.interactions.projection import Projection
from keek_server.releases.opening import ServingRelease
from keek_server.retrieval.fresh import VECTORS, Column
from keek_server.retrieval.ids import IdTable
from keek_server.retrieval.index import FaissIndex
from keek_server.retrieval.live import LiveIndex
from keek_server.search import audience
from keek_server.search.audience import AudienceFollower
from keek_server.settings import Settings
from keek_server.towers.contract import DIMENSION
from keek_server.towers.features import Float32Array
from keek_server.towers.kept import KeptVectors
from keek_server.towers.users import UserInputs

LENGTH = 3
VIDEOS = np.eye(5, DIMENSION, dtype=np.float32)


@dataclass
class Means:
    """A user tower: the mean of what the user interacted with."""

    asked: list[str] = field(default_factory=list)
    is_down: bool = False
    kept: KeptVectors = field(default_factory=lambda: KeptVectors(100))

    async def vector(self, inputs: UserInputs) -> Float32Array:
        if self.is_down:
            raise UnavailableError("Triton is down")
        self.asked.append(inputs.user_id)
        mean: Float32Array = inputs.vectors.mean(axis=0)
        return mean


def index(ids: list[str], vectors: Float32Array) -> LiveIndex:
    fresh_columns = {VECTORS: Column(np.float32, (DIMENSION,))}
    indexes = {VECTORS: FaissIndex.empty(DIMENSION)}
    table = IdTable.build(ids)
    return LiveIndex(indexes, table, {VECTORS: vectors}, fresh_columns=fresh_columns, fresh_limit=1000)


def release(log_seq: int) -> ServingRelease:
    """A release whose users were embedded when the log ended at `log_seq`."""
    serving: Any = SimpleNamespace(
        release=SimpleNamespace(manifest=SimpleNamespace(log_seq=log_seq, history_length=LENGTH)),
        users=Means(),
        fresh=SimpleNamespace(index=index([f"v{n}" for n in range(5)], VIDEOS)),
        audience=index([], np.empty((0, DIMENSION), np.float32)),
    )
    return serving  # type: ignore[no-any-return]


@dataclass
class Live:
    """What follows the registry, by hand."""

    current: ServingRelease | None = None


@dataclass
class Audience:
    parts: Parts
    live: Live
    follower: AudienceFollower

    async def like(self, *user_ids: str, video_id: str = "v0") -> int:
        """Appends a like of each, and waits until it is projected; gives where the log ends."""
        appended = await self.parts.log.append([event(user_id, video_id) for user_id in user_ids])
        projector = self.parts.projector()
        async with beside(projector.run()):
            assert await projector.wait_for(appended.seq, 60)
        return appended.seq

    def publish(self, log_seq: int) -> None:
        self.live.current = release(log_seq)

    def asked(self) -> list[str]:
        """The users that the tower was asked for since the last time, in order."""
        assert self.live.current is not None
        users: Any = self.live.current.users
        asked, users.asked = users.asked, []
        return list(asked)

    def vector(self, user_id: str) -> list[float] | None:
        assert self.live.current is not None
        vector = self.live.current.audience.value(user_id, VECTORS)
        return None if vector is None else vector[:5].tolist()


@pytest.fixture
async def users(stack: EmbeddedStack, tmp_path: Path) -> AsyncIterator[Audience]:
    settings = Settings(data_dir=tmp_path, redis_url=stack.settings.redis_url, redis_deadline_s=20.0)
    async with open_parts(settings) as parts:
        live: Any = Live()
        yield Audience(parts, live, AudienceFollower(parts.log, parts.projection, live, poll_s=0.05))


async def test_who_was_active_between_publishing_and_the_swap_is_in_the_new_audience(users: Audience) -> None:
    log_seq = await users.like("early")
    await users.like("late")
    users.publish(log_seq)
    await users.follower.catch_up()
    assert users.asked() == ["late"]
    assert users.vector("late") == [1, 0, 0, 0, 0]
    # And again with the next release, whatever this one has read.
    await users.like("later")
    users.publish(log_seq)
    await users.follower.catch_up()
    assert users.asked() == ["later", "late"]


async def test_a_release_that_does_not_say_where_its_users_end_is_served_from_a_bounded_part_of_the_log(
    users: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audience, "_ROWS_BACK", 2)
    await users.like("u1", "u2", "u3", "u4")
    users.publish(0)
    await users.follower.catch_up()
    assert users.asked() == ["u4", "u3"]


async def test_a_vector_is_of_the_latest_interactions(users: Audience) -> None:
    users.publish(0)
    for video_id in ("v0", "v1", "v2", "v3"):
        await users.like("u1", video_id=video_id)
    await users.like("u2", video_id="unknown")
    await users.follower.catch_up()
    assert users.vector("u1") == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])
    assert users.vector("u2") is None


async def test_more_users_than_a_round_serves_wait_for_the_next_the_latest_first(
    users: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audience, "_WAITING", 100)
    users.publish(0)
    await users.like(*(f"u{n}" for n in range(130)))
    latest = [f"u{n}" for n in range(129, -1, -1)]
    await users.follower.catch_up()
    assert users.asked() == latest[:64]
    await users.like("u129")
    await users.follower.catch_up()
    # Of more than may wait, the oldest go.
    assert users.asked() == ["u129", *latest[64:100]]
    await users.follower.catch_up()
    assert users.asked() == []


async def test_the_audience_and_feeds_ask_for_a_vector_once(
    users: Audience, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment_us = now_us()
    monkeypatch.setattr(audience, "now_us", lambda: moment_us)
    users.publish(0)
    serving = users.live.current
    assert serving is not None
    await users.like("u1")
    await users.follower.catch_up()
    assert users.asked() == ["u1"]
    history = (await users.parts.projection.user("u1")).history
    vector = await user_vector(serving.users, serving.fresh.index, "u1", history, moment_us)
    assert vector is not None
    assert vector[:5].tolist() == users.vector("u1") == [1, 0, 0, 0, 0]
    assert users.asked() == []


async def test_users_wait_on_while_the_tower_is_down(users: Audience) -> None:
    users.publish(0)
    await users.like("u1", "u2")
    tower: Any = users.live.current.users  # type: ignore[union-attr]
    tower.is_down = True
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await users.follower.catch_up()
    tower.is_down = False
    await users.follower.catch_up()
    assert users.asked() == ["u2", "u1"]


async def test_users_wait_for_their_histories(users: Audience) -> None:
    users.publish(0)
    await users.like("u1")
    await users.parts.log.append([event("u2", "v1"), event("u1", "v1")])
    await users.follower.catch_up()
    assert users.asked() == ["u1"]
    assert users.vector("u1") == [1, 0, 0, 0, 0]
    await users.like("u3")
    await users.follower.catch_up()
    assert users.asked() == ["u3", "u1", "u2"]
    assert users.vector("u1") == [0.5, 0.5, 0, 0, 0]


async def test_nobody_is_forgotten_before_the_first_release(users: Audience) -> None:
    await users.like("u1")
    await users.follower.catch_up()
    users.publish(0)
    await users.follower.catch_up()
    assert users.asked() == ["u1"]


async def test_histories_are_read_together(users: Audience, monkeypatch: pytest.MonkeyPatch) -> None:
    users.publish(0)
    await users.like(*(f"u{n}" for n in range(64)))
    reads = 0
    read = Projection.read
    own = users.parts.projection

    async def counted(projection: Projection, queue: Any) -> list[Any]:
        nonlocal reads
        # The class is everybody's, and what a test before has left may read as well.
        reads += projection is own
        return await read(projection, queue)

    monkeypatch.setattr(Projection, "read", counted)
    await users.follower.catch_up()
    assert len(users.asked()) == 64
    # Four for the histories of 64 users, one for how far they go.
    assert reads <= 5
