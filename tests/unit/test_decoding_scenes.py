"""Which of many frames are taken."""

import random

import pytest
from benchmarks.clips import Clip, Pattern, Scene, pictures
from PIL import Image

from keek_server.videos.decoding.scenes import choose, difference, interest, is_blank

_SIZE = (32, 32)


def _plain(colour: str) -> Image.Image:
    return Image.new("RGB", _SIZE, colour)


def _scene(hue: float, count: int, pattern: Pattern = "disc", brightness: float = 1.0) -> list[Image.Image]:
    clip = Clip(frame_rate=10, scenes=(Scene(hue, pattern, count / 10, brightness),))
    return [picture.resize(_SIZE) for picture in pictures(clip)]


def test_one_scene_is_sampled_evenly() -> None:
    assert choose(_scene(0.3, 24), 8) == [1, 4, 7, 10, 13, 16, 19, 22]


def test_every_scene_is_seen_when_there_are_frames_enough() -> None:
    looks = _scene(0.0, 18) + _scene(0.3, 2) + _scene(0.6, 4)
    chosen = choose(looks, 4)
    assert len(chosen) == 4
    assert [sum(i in part for i in chosen) for part in (range(18), range(18, 20), range(20, 24))] == [2, 1, 1]


def test_the_longest_scenes_are_seen_when_there_are_more_scenes_than_frames() -> None:
    looks = _scene(0.0, 3) + _scene(0.3, 12) + _scene(0.6, 2) + _scene(0.9, 7)
    assert [i // 1 for i in choose(looks, 2)] == [3 + 6, 17 + 3]


def test_what_is_left_is_shared_by_length() -> None:
    looks = _scene(0.0, 16) + _scene(0.5, 8)
    chosen = choose(looks, 6)
    assert sum(i < 16 for i in chosen) == 4


def test_blank_frames_are_taken_only_where_there_is_nothing_else() -> None:
    black = [_plain("black")] * 10
    assert choose(black + _scene(0.4, 4) + black, 8) == [10, 11, 12, 13]
    assert len(choose(black, 8)) == 8


@pytest.mark.parametrize(
    ("colour", "blank"), [("black", True), ("white", True), ("grey", True), ("red", False)]
)
def test_a_plain_colour_is_not_blank_but_its_absence_is(colour: str, *, blank: bool) -> None:
    assert is_blank(_plain(colour)) is blank


def test_a_choice_is_ascending_distinct_and_the_same_again() -> None:
    chooser = random.Random(3)
    looks = [picture for _ in range(7) for picture in _scene(chooser.random(), chooser.randrange(1, 6))]
    for count in range(1, len(looks) + 5):
        chosen = choose(looks, count)
        assert chosen == sorted(set(chosen)) == choose(looks, count)
        assert len(chosen) == min(count, len(looks))


def test_movement_differs_less_than_a_cut() -> None:
    moving, other = _scene(0.1, 10, "checkers"), _scene(0.6, 1, "checkers")
    most = max(difference(one, two) for one in moving for two in moving)
    assert 0 == difference(moving[0], moving[0]) < most < difference(moving[0], other[0]) <= 1


def test_a_picture_interests_more_than_a_dark_one() -> None:
    assert (
        interest(_scene(0.2, 1)[0]) > interest(_scene(0.2, 1, brightness=0.2)[0]) > interest(_plain("black"))
    )
