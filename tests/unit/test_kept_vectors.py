"""Vectors of users that are kept: for as long as they are true, and no longer."""

from typing import Any, cast

import numpy as np
import pytest

from keek_server.feed.history import AGE_STEP, counted_to_us, user_vector
from keek_server.interactions.history import History, HistoryEntry
from keek_server.interactions.kinds import InteractionKind
from keek_server.retrieval.build import IndexOptions, build_index
from keek_server.retrieval.fresh import VECTORS, Column
from keek_server.retrieval.ids import IdTable
from keek_server.retrieval.live import LiveIndex
from keek_server.towers.contract import DIMENSION
from keek_server.towers.features import Float32Array, Tensors
from keek_server.towers.kept import KeptVectors
from keek_server.towers.users import UserVectors

COUNT = 40
HOUR_US = 3_600_000_000
NOW_US = 1000 * HOUR_US


class Towers:
    """Answers with the sum of a history's vectors and ages, as numpy adds them, and counts the calls."""

    def __init__(self) -> None:
        self.calls = 0

    async def vectors(self, _tower: Any, _version: int, features: Tensors, *, deadline_s: float) -> Any:
        assert deadline_s > 0
        self.calls += 1
        ages_s = features["history_ages_s"].sum(axis=1, keepdims=True)  # type: ignore[attr-defined]
        return (features["history_vectors"].sum(axis=1) + ages_s).astype(np.float32)  # type: ignore[attr-defined]


def rows(count: int, seed: int) -> Float32Array:
    return np.random.default_rng(seed).normal(size=(count, DIMENSION)).astype(np.float32)


def history(*numbers: int, age_us: int = HOUR_US) -> History:
    return History.of(HistoryEntry(f"v{n}", InteractionKind.LIKE, NOW_US - age_us) for n in numbers)


class Users:
    """The vectors of users of one release."""

    def __init__(self, kept_limit: int = 100, fresh_limit: int = 10) -> None:
        vectors = rows(COUNT, 1)
        index, _ = build_index(vectors, vectors, IndexOptions(COUNT + 1, 1.0))
        self.videos = LiveIndex(
            {VECTORS: index},
            IdTable.build([f"v{n}" for n in range(COUNT)]),
            {VECTORS: vectors},
            fresh_columns={VECTORS: Column(np.float32, (DIMENSION,))},
            fresh_limit=fresh_limit,
        )
        self.towers = Towers()
        self.users = UserVectors(cast("Any", self.towers), 1, kept_limit=kept_limit)

    async def vector(self, entries: History, user_id: str = "u", later_s: float = 0.0) -> Float32Array:
        vector = await user_vector(self.users, self.videos, user_id, entries, NOW_US + round(later_s * 1e6))
        assert vector is not None
        return vector

    def put(self, *video_ids: str) -> None:
        self.videos.put(list(video_ids), {VECTORS: rows(len(video_ids), 2)})


def anew(users: Users) -> Users:
    """The same videos, and nothing kept."""
    other = Users(kept_limit=0)
    other.videos = users.videos
    return other


async def test_the_same_history_is_answered_without_the_tower() -> None:
    users = Users()
    first = await users.vector(history(1, 2))
    again = await users.vector(history(1, 2), later_s=30.0)
    assert users.towers.calls == 1
    assert (first == again).all()


@pytest.mark.parametrize("other", [history(1, 2, 3), history(2, 1), history(1), history(1, 2, age_us=5)])
async def test_another_history_is_not(other: History) -> None:
    users = Users()
    await users.vector(history(1, 2))
    await users.vector(other)
    assert users.towers.calls == 2


async def test_another_user_is_not() -> None:
    users = Users()
    await users.vector(history(1, 2))
    await users.vector(history(1, 2), user_id="other")
    assert users.towers.calls == 2


@pytest.mark.parametrize("age_s", [0.0, 0.19, 9.0, 59.0, 3599.0, 1e7])
async def test_a_vector_holds_while_the_newest_ages_by_less_than_a_step(age_s: float) -> None:
    entries = history(1, 2, age_us=round(age_s * 1e6))
    users, moments = Users(), set()
    for later_s in np.linspace(0.0, 0.5 * (1 + age_s), 50):
        moments.add(counted_to_us(entries, NOW_US + round(later_s * 1e6)))
        kept = await users.vector(entries, later_s=later_s)
        assert (kept == await anew(users).vector(entries, later_s=later_s)).all()
        assert users.towers.calls == len(moments)
    assert len(moments) in (3, 4)


def test_ages_are_counted_to_a_moment_that_is_not_over_for_long() -> None:
    for age_s in np.geomspace(1e-3, 1e7, 500):
        entries = history(1, 2, age_us=round(age_s * 1e6))
        newest_us, moment_us = entries[-1].event_time_us, counted_to_us(entries, NOW_US)
        assert newest_us <= moment_us <= NOW_US
        assert np.log1p(age_s) - np.log1p((moment_us - newest_us) / 1e6) <= AGE_STEP + 1e-4


async def test_a_time_ahead_of_the_clock_is_an_age_of_nothing() -> None:
    users = Users()
    entries = history(1, age_us=-100_000_000)
    first = await users.vector(entries)
    assert (await users.vector(entries, later_s=99.0) == first).all()
    assert users.towers.calls == 1
    await users.vector(entries, later_s=101.0)
    assert users.towers.calls == 2


async def test_a_video_of_the_history_that_changes_makes_it_anew_and_others_do_not() -> None:
    users = Users()
    await users.vector(history(1, 2))
    users.put("v3", "new")
    users.videos.remove(["v4"])
    await users.vector(history(1, 2))
    assert users.towers.calls == 1
    users.put("v5", "v2")
    changed = await users.vector(history(1, 2))
    assert users.towers.calls == 2
    assert (changed == await anew(users).vector(history(1, 2))).all()


async def test_a_video_that_becomes_known_counts() -> None:
    users = Users()
    before = await users.vector(history(1, 99))
    users.put("v99")
    after = await users.vector(history(1, 99))
    assert (before != after).any()


async def test_a_video_that_leaves_the_fresh_part_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keek_server.retrieval.fresh._BLOCK_ROWS", 1)
    users = Users(fresh_limit=1)
    users.put("v1")
    before = await users.vector(history(1))
    users.put("v2")
    users.put("v3")
    after = await users.vector(history(1))
    assert (before != after).any()
    assert (after == await anew(users).vector(history(1))).all()


async def test_more_changes_than_are_known_make_it_anew() -> None:
    users = Users(fresh_limit=5000)
    await users.vector(history(1))
    users.put(*(f"new{n}" for n in range(2000)))
    await users.vector(history(1))
    assert users.towers.calls == 2


async def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    users = Users(kept_limit=3)
    for user_id in "abcd":
        await users.vector(history(1), user_id=user_id)
    assert len(users.users.kept) == 3
    await users.vector(history(1), user_id="d")
    assert users.towers.calls == 4
    await users.vector(history(1), user_id="a")
    assert users.towers.calls == 5


async def test_nothing_is_kept_when_it_is_switched_off() -> None:
    users = Users(kept_limit=0)
    await users.vector(history(1))
    await users.vector(history(1))
    assert users.towers.calls == 2
    assert len(users.users.kept) == 0


async def test_a_release_begins_with_nothing_kept() -> None:
    before, after = Users(), Users()
    await before.vector(history(1))
    await after.vector(history(1))
    assert (before.towers.calls, after.towers.calls) == (1, 1)


async def test_a_history_of_nothing_that_is_known_has_no_vector() -> None:
    users = Users()
    assert await user_vector(users.users, users.videos, "u", history(77), NOW_US) is None
    assert users.towers.calls == 0


def test_what_is_kept_is_no_part_of_a_batch() -> None:
    kept, batch = KeptVectors(10), np.ones((64, DIMENSION), np.float32)
    kept.keep("u", b"d", NOW_US, batch[3], change_count=0)
    found = kept.find("u", b"d", NOW_US)
    assert found is not None
    assert found.vector.base is None


def test_a_history_is_what_it_was_made_of() -> None:
    entries = [HistoryEntry(f"v:{n}", InteractionKind.SAVE, n) for n in range(5)]
    made = History.of(entries)
    assert list(made) == entries
    assert (made[-1], list(made[-2:]), len(made)) == (entries[-1], entries[-2:], 5)
    assert made.digest() == History.of(entries).digest() != made[1:].digest()
    assert History.of(entries[:1]).digest() != History.of([HistoryEntry("v:00", 3, 0)]).digest()  # type: ignore[arg-type]
