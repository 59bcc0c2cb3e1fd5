"""Users as if they were new: what is known of them, what is not, and what stays."""

from typing import Final

import numpy as np
import pytest
from evaluating import SECOND_US, Event, dataset_of, targets_of

from keek_server.interactions.kinds import InteractionKind
from keek_training.evaluation.cases import Cases, cases_of
from keek_training.evaluation.cold_start import as_if_new, cold_starts
from keek_training.evaluation.ranking import DEPTH, Ranked

View, Like, Skip = (InteractionKind[name] for name in ("VIEW", "LIKE", "SKIP"))

VIDEOS: Final = ["a", "b", "c", "d", "e", "f"]
EVENTS: Final[list[Event]] = [
    ("u", "a", View),
    ("w", "a", View),
    ("u", "b", View),
    ("u", "c", Skip),
    ("u", "b", Like),
    ("u", "d", View),
    ("u", "e", Skip),
    ("u", "d", Like),
]


@pytest.fixture
def cases() -> Cases:
    return cases_of(dataset_of(EVENTS, VIDEOS), targets_of([("n", "a"), ("u", "f"), ("w", "f")]))


def _rows(cases: Cases, row: int) -> list[tuple[str, int, int]]:
    known, user = cases.known, cases.users[row]
    own = slice(known.offsets[user], known.offsets[user + 1])
    columns = (known.videos[own], known.kinds[own], known.times_us[own] // SECOND_US)
    return [(VIDEOS[video], kind, time) for video, kind, time in zip(*columns, strict=True)]


def test_the_newest_videos_are_known_with_all_that_was_done_to_them_but_skips(cases: Cases) -> None:
    one = as_if_new(cases.take(np.array([1])), 1)
    assert _rows(one, 0) == [("d", View, 6), ("d", Like, 8)]
    assert one.liked.videos.tolist() == [3]
    two = as_if_new(cases.take(np.array([1])), 2)
    assert _rows(two, 0) == [("b", View, 3), ("b", Like, 5), ("d", View, 6), ("d", Like, 8)]
    assert two.liked.videos.tolist() == [1, 3]


def test_the_id_is_new_and_moment_targets_and_what_was_met_stay(cases: Cases) -> None:
    whole = cases.take(np.array([1, 2]))
    cut = as_if_new(whole, 1)
    assert not set(cut.user_ids) & set(cases.known.user_ids)
    assert not (cut.known.users[:, None] == cases.known.users[None]).all(axis=2).any()
    assert _rows(cut, 1) == [("a", View, 2)]
    assert cut.now_us.tolist() == whole.now_us.tolist()
    assert cut.seen.videos.tolist() == whole.seen.videos.tolist() == [0, 2, 1, 4, 3, 0]
    assert cut.targets.videos.tolist() == [5, 5]
    assert not cut.is_new_user.any()


def test_an_id_that_looks_as_if_it_were_new_is_not_taken() -> None:
    events = [*EVENTS, ("as-if-new/u", "a", View)]
    cases = cases_of(dataset_of(events, VIDEOS), targets_of([("u", "f"), ("as-if-new/u", "f")]))
    assert not set(as_if_new(cases, 1).user_ids) & set(cases.known.user_ids)


def test_users_are_asked_for_with_as_much_as_they_have(cases: Cases) -> None:
    asked = []

    def ranker(own: Cases) -> Ranked:
        asked.append(own.user_ids)
        ranked: Ranked = np.full((len(own), DEPTH), len(asked), np.int32)
        return ranked

    whole = {"model": np.arange(3, dtype=np.int32)[:, None].repeat(DEPTH, axis=1)}
    one, three = cold_starts(cases, whole, {"model": ranker}, seed=1)
    assert [own.removeprefix("as-if-new/") for own in asked[0]] == ["u", "w"]
    assert [own.removeprefix("as-if-new/") for own in asked[1]] == ["u"]
    assert (one.length, three.length) == (1, 3)
    assert one.whole["model"][:, 0].tolist() == [1, 2]
    assert three.rankings["model"].shape == (1, DEPTH)
