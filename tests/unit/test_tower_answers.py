"""Answers of Triton that do not fit what it was asked."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from keek_server.errors import UnavailableError
from keek_server.towers.client import TowerClient
from keek_server.towers.contract import DIMENSION
from keek_server.towers.users import UserInputs, UserVectors, background_vectors

INPUTS = UserInputs("u", np.zeros((1, DIMENSION), np.float32), np.ones(1, np.int32), np.zeros(1, np.float32))


class Triton:
    """Gives as many rows whatever it is asked."""

    def __init__(self, row_count: int) -> None:
        self.answer = np.zeros((row_count, DIMENSION), np.float32)

    async def infer(self, *_: Any, model_version: str, **__: Any) -> Any:
        response = SimpleNamespace(model_version=model_version)
        return SimpleNamespace(get_response=lambda: response, as_numpy=lambda _name: self.answer)


def towers(row_count: int) -> TowerClient:
    client: Any = Triton(row_count)
    return TowerClient(client)


@pytest.mark.parametrize("row_count", [0, 2])
async def test_another_number_of_rows_is_a_failure_of_the_tower(row_count: int) -> None:
    users = UserVectors(towers(row_count), 1)
    for _ in range(3):
        with pytest.raises(UnavailableError, match=rf"gave {row_count} rows, not 1"):
            await users.vector(INPUTS)
    with pytest.raises(UnavailableError, match=rf"gave {row_count} rows, not 1"):
        await background_vectors(towers(row_count), 1, [INPUTS])
    # The breaker has seen it.
    with pytest.raises(UnavailableError, match="is left alone"):
        await users.vector(INPUTS)
    users.retire()


async def test_vectors_that_fit_are_given() -> None:
    assert (await UserVectors(towers(1), 1).vector(INPUTS)).shape == (DIMENSION,)
    assert (await background_vectors(towers(1), 1, [INPUTS])).shape == (1, DIMENSION)
