"""Natural micro-batching."""

import asyncio
from types import SimpleNamespace

import pytest

from keek_server.batching import Batcher
from keek_server.errors import OverloadedError, UnavailableError


class Recorder:
    """Doubles its items, one batch at a time, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        await self.gate.wait()
        if 13 in items:
            raise ValueError("thirteen")
        return [item * 2 for item in items]


async def test_a_lone_call_is_a_batch_of_its_own() -> None:
    recorder = Recorder()
    batcher = Batcher(recorder.run, max_weight=10, max_waiting=10)
    assert [await batcher.submit(1), await batcher.submit(2)] == [2, 4]
    assert recorder.batches == [[1], [2]]


async def test_what_waits_while_a_batch_runs_goes_into_the_next() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    batcher = Batcher(recorder.run, max_weight=3, max_waiting=10)
    calls = [asyncio.create_task(batcher.submit(1))]
    await asyncio.sleep(0.01)
    calls += [asyncio.create_task(batcher.submit(i)) for i in range(2, 7)]
    await asyncio.sleep(0.01)
    recorder.gate.set()
    assert await asyncio.gather(*calls) == [2, 4, 6, 8, 10, 12]
    assert recorder.batches == [[1], [2, 3, 4], [5, 6]]


async def test_weights_bound_a_batch_and_a_heavier_item_goes_alone() -> None:
    recorder = Recorder()
    batcher = Batcher(recorder.run, max_weight=10, max_waiting=10, weigh=lambda item: item)
    await asyncio.gather(*(batcher.submit(weight) for weight in (4, 6, 1, 25, 2)))
    assert recorder.batches == [[4, 6], [1], [25], [2]]


async def test_cancelled_calls_are_dropped() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    batcher = Batcher(recorder.run, max_weight=10, max_waiting=10)
    first, gone, last = (asyncio.create_task(batcher.submit(i)) for i in (1, 2, 3))
    await asyncio.sleep(0)
    late = asyncio.create_task(batcher.submit(4))
    await asyncio.sleep(0.01)
    late.cancel()
    recorder.gate.set()
    assert await asyncio.gather(first, gone, last) == [2, 4, 6]
    await asyncio.sleep(0.01)
    assert recorder.batches == [[1, 2, 3]]


async def test_a_failed_batch_reaches_all_its_callers_and_no_others() -> None:
    recorder = Recorder()
    batcher = Batcher(recorder.run, max_weight=2, max_waiting=10)
    results = await asyncio.gather(*(batcher.submit(i) for i in (1, 13, 3)), return_exceptions=True)
    assert isinstance(results[0], ValueError)
    assert isinstance(results[1], ValueError)
    assert results[2] == 6


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_batch_with_another_number_of_results_fails_and_the_next_does_not(count: int) -> None:
    async def run(items: list[int]) -> list[int]:
        return items if 13 not in items else [0] * count

    batcher = Batcher(run, max_weight=2, max_waiting=10)
    async with asyncio.timeout(60):
        results = await asyncio.gather(*(batcher.submit(i) for i in (1, 13, 3)), return_exceptions=True)
        assert [str(result) for result in results[:2]] == [f"{count} results for a batch of 2"] * 2
        assert isinstance(results[0], RuntimeError)
        assert results[2] == 3
        assert await batcher.submit(4) == 4


async def test_too_many_waiting_calls_are_refused() -> None:
    recorder = Recorder()
    recorder.gate.clear()
    batcher = Batcher(recorder.run, max_weight=1, max_waiting=2)
    calls = [asyncio.create_task(batcher.submit(i)) for i in range(1, 3)]
    await asyncio.sleep(0.01)
    calls.append(asyncio.create_task(batcher.submit(3)))
    await asyncio.sleep(0.01)
    with pytest.raises(OverloadedError):
        await batcher.submit(4)
    recorder.gate.set()
    assert await asyncio.gather(*calls) == [2, 4, 6]


async def test_what_waits_for_longer_than_it_may_is_refused_and_never_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited_s = 0.0
    # Time that a busy machine loses must not count.
    monkeypatch.setattr("keek_server.batching.time", SimpleNamespace(monotonic=lambda: waited_s))
    recorder = Recorder()
    recorder.gate.clear()
    batcher = Batcher(recorder.run, max_weight=10, max_waiting=10, max_delay_s=0.05)
    first = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0.01)
    late = asyncio.create_task(batcher.submit(2))
    await asyncio.sleep(0.01)
    waited_s = 0.051
    recorder.gate.set()
    assert await first == 2
    with pytest.raises(UnavailableError, match=r"longer than 0\.05 s"):
        await late
    assert recorder.batches == [[1]]
