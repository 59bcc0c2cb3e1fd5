"""Answers of Triton that do not fit what it was asked."""

from typing import Any

import numpy as np
import pytest

from keek_server.errors import UnavailableError
from keek_server.towers.clip import ClipImages, ClipTexts
from keek_server.towers.contract import CLIP_DIMENSION, DIMENSION
from keek_server.towers.users import UserInputs, UserVectors, background_vectors

INPUTS = UserInputs("u", np.zeros((1, DIMENSION), np.float32), np.ones(1, np.int32), np.zeros(1, np.float32))


class Towers:
    """Gives the same for whatever it is asked."""

    def __init__(self, *shape: int) -> None:
        self.answer = np.zeros(shape, np.float32)

    async def vectors(self, *_: Any, **__: Any) -> Any:
        return self.answer


class Words:
    """Every text is one word."""

    def tokens(self, _text: str) -> Any:
        return np.zeros(1, np.int32)

    def padded(self, batch: list[Any]) -> Any:
        return np.stack(batch)


def refused(shape: tuple[int, ...]) -> Any:
    return pytest.raises(UnavailableError, match=rf"gave vectors \[{', '.join(map(str, shape))}\], not")


@pytest.mark.parametrize(
    "shape", [(0, DIMENSION), (2, DIMENSION), (1, DIMENSION - 1), (1,), (1, 1, DIMENSION)]
)
async def test_vectors_of_users_that_do_not_fit_are_a_failure_of_the_tower(shape: tuple[int, ...]) -> None:
    towers: Any = Towers(*shape)
    users = UserVectors(towers, 1)
    for _ in range(2):
        with refused(shape):
            await users.vector(INPUTS)
    with refused(shape):
        await background_vectors(towers, 1, [INPUTS])
    # The breaker has seen it: nobody else waits beside who asks once more.
    with pytest.raises(UnavailableError, match="gave vectors"):
        await users.vector(INPUTS)
    with pytest.raises(UnavailableError, match="is left alone"):
        await users.vector(INPUTS)
    users.retire()


@pytest.mark.parametrize("shape", [(0, CLIP_DIMENSION), (2, CLIP_DIMENSION)])
async def test_another_number_of_vectors_of_clip_is_refused(shape: tuple[int, ...]) -> None:
    towers: Any = Towers(*shape)
    words: Any = Words()
    with refused(shape):
        await ClipTexts(towers, 1, words, deadline_s=10.0).vector("a word")
    with refused(shape):
        await ClipImages(towers, 1, image_size=2, deadline_s=10.0).vector(np.zeros((1, 3, 2, 2), np.uint8))


async def test_vectors_that_fit_are_given() -> None:
    towers: Any = Towers(1, DIMENSION)
    assert (await UserVectors(towers, 1).vector(INPUTS)).shape == (DIMENSION,)
    assert (await background_vectors(towers, 1, [INPUTS])).shape == (1, DIMENSION)
