"""What a feed cannot go below: one raw call to each of the parts that it needs, none of them busy."""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial

import numpy as np
from tritonclient import grpc as triton
from tritonclient.utils import np_to_triton_dtype

from benchmarks.feed_scene import VERSION, Catalogue
from benchmarks.feed_users import Events, asking_users, user_id
from keek_server.clock import now_us
from keek_server.feed.history import history_inputs
from keek_server.interactions.connection import open_redis
from keek_server.interactions.history import HistoryEntry
from keek_server.retrieval.index import Vectors
from keek_server.retrieval.searcher import search_executor
from keek_server.towers.client import open_towers
from keek_server.towers.contract import USER_TOWER
from keek_server.towers.users import UserInputs, user_batch

_USERS = 300
_WARM_UP = 50
_FOUND = 30
"""Videos that a feed of ten asks the index for."""
_DEADLINE_S = 5.0


async def measure_floor(catalogue: Catalogue, events: Events, history_length: int) -> dict[str, float]:
    """Medians in milliseconds, one call at a time, with the histories of users as they ask."""
    users = _inputs(catalogue, events, history_length)
    triton_ms, vectors = await _triton(catalogue, users)
    return {
        "triton_ms": triton_ms,
        "search_ms": await _search(catalogue, vectors),
        "redis_ms": await _redis(catalogue),
    }


def _inputs(catalogue: Catalogue, events: Events, history_length: int) -> list[UserInputs]:
    corpus, ids, now = catalogue.built.corpus(), catalogue.video_ids, now_us()
    inputs = []
    for user in asking_users(_WARM_UP + _USERS, seed=101):
        rows = np.flatnonzero(events.users == int(user.removeprefix("u")))[-history_length:]
        columns = (events.videos[rows], events.kinds[rows], events.times_us[rows])
        history = [
            HistoryEntry(ids[video], kind, time_us)
            for video, kind, time_us in zip(*(column.tolist() for column in columns), strict=True)
        ]
        inputs.append(history_inputs(corpus, user_id(0), history, now))
    return inputs


async def _triton(catalogue: Catalogue, users: list[UserInputs]) -> tuple[float, Vectors]:
    """The median, and the vectors of the users, float32 [n, DIMENSION]."""
    output = triton.InferRequestedOutput(USER_TOWER.output.name)
    vectors: list[Vectors] = []

    async def ask(inputs: list[triton.InferInput]) -> None:
        answer = await towers.infer(USER_TOWER, VERSION, inputs, output, deadline_s=_DEADLINE_S)
        vectors.append(answer.as_numpy(USER_TOWER.output.name))

    async with open_towers(catalogue.settings) as towers:
        prepared = [_tensors(user) for user in users]
        took_ms = await _median_ms([partial(ask, inputs) for inputs in prepared])
    return took_ms, np.concatenate(vectors)


def _tensors(user: UserInputs) -> list[triton.InferInput]:
    features = user_batch([user])
    tensors = []
    for spec in USER_TOWER.inputs:
        values = features[spec.name]
        tensor = triton.InferInput(spec.name, list(values.shape), np_to_triton_dtype(spec.dtype))
        tensor.set_data_from_numpy(values.astype(spec.dtype, copy=False))
        tensors.append(tensor)
    return tensors


async def _search(catalogue: Catalogue, vectors: Vectors) -> float:
    """On the one thread that a server searches with."""
    corpus = catalogue.built.corpus()
    index = catalogue.built.index(corpus)

    def search() -> float:
        times_ms = []
        for vector in vectors:
            started = time.perf_counter()
            index.search(vector[None], _FOUND)
            times_ms.append((time.perf_counter() - started) * 1000)
        return statistics.median(times_ms[_WARM_UP:])

    with search_executor() as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, search)


async def _redis(catalogue: Catalogue) -> float:
    async with open_redis(catalogue.settings) as redis:
        return await _median_ms([redis.ping] * (_WARM_UP + _USERS))


async def _median_ms(calls: list[Callable[[], Awaitable[object]]]) -> float:
    """One after the other; the first ones warm up."""
    times_ms = []
    for call in calls:
        started = time.perf_counter()
        await call()
        times_ms.append((time.perf_counter() - started) * 1000)
    return statistics.median(times_ms[_WARM_UP:])
