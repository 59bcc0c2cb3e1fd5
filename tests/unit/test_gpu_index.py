"""What lies on a GPU, in what order it gets there, and what is done without it. The device is a fake one."""

import asyncio
import gc
import logging
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fake_gpu import FakeDevice
from small_indexes import ROWS, USERS, built

from keek_server.retrieval import gpu as gpu_module
from keek_server.retrieval.gpu import Gpu, GpuIndex

LACKING = RuntimeError("StandardGpuResources: alloc fail (cudaMalloc error out of memory [2])")
BROKEN = RuntimeError("CUDA error 700 an illegal memory access was encountered")


@pytest.fixture
def make() -> Iterator[Callable[..., Gpu]]:
    """Makes GPUs, and closes them."""
    made: list[Gpu] = []

    def make_one(device: FakeDevice, memory: float = math.inf) -> Gpu:
        made.append(Gpu(device, memory))
        return made[-1]

    yield make_one
    for gpu in made:
        gpu.close()


async def settled(gpu: Gpu) -> None:
    """Waits until all that was arranged is done."""
    await asyncio.wrap_future(gpu._copier.submit(gc.collect))


async def serve(gpu: Gpu, *order: GpuIndex) -> None:
    gpu.arrange(order)
    await settled(gpu)


def agrees(index: GpuIndex) -> bool:
    """Whether it finds what the index in memory does, which it does wherever it is searched."""
    scores, rows = index.search(USERS, 10)
    expected = index.own.search(USERS, 10)
    np.testing.assert_allclose(scores, expected[0], rtol=1e-5)
    return bool((rows == expected[1]).all())


# -- searches ---------------------------------------------------------------------------------------
async def test_a_copy_is_searched_and_what_it_cannot_do_is_not_asked_of_it(make: Callable[..., Gpu]) -> None:
    device = FakeDevice()
    gpu = make(device)
    index = gpu.index(built(1, count=3000))
    assert agrees(index)
    assert device.searches == 0
    await serve(gpu, index)
    assert agrees(index)
    assert device.searches == 1
    allowed = np.random.default_rng(1).random(3000) < 0.5
    masked = index.search(USERS, 10, allowed)[1]
    assert masked.tolist() == index.own.search(USERS, 10, allowed)[1].tolist()
    assert index.search(USERS, 2500)[1].tolist() == index.own.search(USERS, 2500)[1].tolist()
    assert index.search(USERS, 0)[1].shape == (20, 0)
    assert device.searches == 1


async def test_one_thread_searches_all_copies_whoever_asks(make: Callable[..., Gpu]) -> None:
    device = FakeDevice()
    gpu = make(device)
    indexes = [gpu.index(built(seed)) for seed in (1, 2)]
    await serve(gpu, *indexes)
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(agrees, indexes * 50))
    assert all(found)
    assert device.searches == 100
    assert len(device.threads) == 1
    assert not device.threads & {threading.get_ident()}


async def test_what_the_lists_do_not_offer_is_found_all_the_same(make: Callable[..., Gpu]) -> None:
    own = built(1)
    (_, least), *_ = own.report.efforts
    short = own.copied(lambda same: same, efforts=((100, 1),))
    assert least > 1
    gpu = make(FakeDevice())
    index = gpu.index(short)
    await serve(gpu, index)
    scores, rows = index.search(USERS, ROWS)
    assert np.sort(rows, axis=1).tolist() == [list(range(ROWS))] * len(USERS)
    assert (np.diff(scores, axis=1) <= 0).all()


# -- swaps ------------------------------------------------------------------------------------------
async def test_where_both_fit_the_new_one_is_there_before_it_serves_and_the_old_one_stays(
    make: Callable[..., Gpu],
) -> None:
    device = FakeDevice()
    gpu = make(device, 2 * ROWS)
    old, new = (gpu.index(built(seed)) for seed in (1, 2))
    await serve(gpu, old)
    await gpu.bring(new, [old], [old])
    assert (old.is_copied, new.is_copied) == (True, True)
    await serve(gpu, new, old)
    # A rollback finds its copy.
    await serve(gpu, old, new)
    assert (old.is_copied, new.is_copied) == (True, True)
    assert device.copies == 2


async def test_where_both_do_not_fit_the_new_one_begins_without_and_the_old_one_makes_room(
    make: Callable[..., Gpu],
) -> None:
    device = FakeDevice(capacity=1.5 * ROWS)
    gpu = make(device, 1.5 * ROWS)
    old, new = (gpu.index(built(seed)) for seed in (1, 2))
    await serve(gpu, old)
    await gpu.bring(new, [old], [old])
    assert (old.is_copied, new.is_copied) == (True, False)
    assert agrees(old)
    assert agrees(new)
    device.copying.clear()
    device.go.clear()
    gpu.arrange([new, old])
    assert await asyncio.to_thread(device.copying.wait, 10)
    # The old copy is gone before the new one is begun, and both answer meanwhile.
    assert device.used == 0
    assert agrees(old)
    assert agrees(new)
    device.go.set()
    await settled(gpu)
    assert (old.is_copied, new.is_copied) == (False, True)
    await gpu.bring(old, [new], [new, old])
    await serve(gpu, old, new)
    assert (old.is_copied, new.is_copied) == (True, False)
    assert agrees(old)
    assert device.most_used == ROWS


async def test_a_release_does_not_wait_for_ever_for_its_copy(
    make: Callable[..., Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_module, "_BRING_S", 0.1)
    device = FakeDevice()
    gpu = make(device)
    index = gpu.index(built(1))
    device.go.clear()
    await asyncio.wait_for(gpu.bring(index, [], []), 5)
    assert not index.is_copied
    assert agrees(index)
    device.go.set()
    await settled(gpu)
    assert index.is_copied


async def test_what_is_kept_to_go_back_to_makes_room_before_the_swap(make: Callable[..., Gpu]) -> None:
    device = FakeDevice()
    gpu = make(device, 2 * ROWS)
    older, active, new = (gpu.index(built(seed)) for seed in (1, 2, 3))
    await serve(gpu, active, older)
    await gpu.bring(new, [active], [active, older])
    assert [index.is_copied for index in (older, active, new)] == [False, True, True]
    assert device.most_used == 2 * ROWS


async def test_a_trial_keeps_its_copy_before_what_is_gone_back_to(make: Callable[..., Gpu]) -> None:
    gpu = make(FakeDevice(), 2 * ROWS)
    active, trial, previous = (gpu.index(built(seed)) for seed in (1, 2, 3))
    await serve(gpu, active, previous)
    await serve(gpu, active, trial, previous)
    assert [index.is_copied for index in (active, trial, previous)] == [True, True, False]


async def test_a_copy_is_freed_when_no_search_runs_on_it_any_more(make: Callable[..., Gpu]) -> None:
    device = FakeDevice()
    gpu = make(device, ROWS)
    old, new = (gpu.index(built(seed)) for seed in (1, 2))
    await serve(gpu, old)
    device.searching.clear()
    device.answer.clear()
    searched = asyncio.create_task(asyncio.to_thread(agrees, old))
    assert await asyncio.to_thread(device.searching.wait, 10)
    gpu.arrange([new, old])
    await asyncio.sleep(0.1)
    assert (device.used, device.copies) == (ROWS, 1)
    device.answer.set()
    assert await searched
    await settled(gpu)
    assert (device.used, device.most_used, new.is_copied) == (ROWS, ROWS, True)


async def test_what_was_to_serve_and_did_not_leaves_nothing_behind(make: Callable[..., Gpu]) -> None:
    device = FakeDevice()
    gpu = make(device)
    active, failed, next_one = (gpu.index(built(seed)) for seed in (1, 2, 3))
    await serve(gpu, active)
    await gpu.bring(failed, [active], [active])
    await gpu.bring(next_one, [active], [active])
    assert [index.is_copied for index in (active, failed, next_one)] == [True, False, True]
    assert device.most_used == 2 * ROWS


async def test_one_that_fits_in_no_way_is_searched_in_memory_and_others_are_not_held_up(
    make: Callable[..., Gpu],
) -> None:
    gpu = make(FakeDevice(), ROWS)
    large, small = gpu.index(built(1, count=ROWS + 1)), gpu.index(built(2))
    await gpu.bring(large, [], [])
    await serve(gpu, large, small)
    assert (large.is_copied, small.is_copied) == (False, True)
    assert agrees(large)


# -- faults -----------------------------------------------------------------------------------------
async def test_memory_that_was_not_known_to_be_lacking_is_made_by_what_serves_least(
    make: Callable[..., Gpu], caplog: pytest.LogCaptureFixture
) -> None:
    device = FakeDevice(capacity=2.5 * ROWS)
    gpu = make(device)
    oldest, active, new = (gpu.index(built(seed)) for seed in (1, 2, 3))
    await serve(gpu, active, oldest)
    await gpu.bring(new, [active], [active, oldest])
    assert [index.is_copied for index in (oldest, active, new)] == [False, True, True]
    assert "out of memory" in caplog.text
    device.capacity = 1.5 * ROWS
    await serve(gpu, oldest, new, active)
    assert [index.is_copied for index in (oldest, new, active)] == [True, False, False]


async def test_a_copy_that_cannot_be_made_leaves_its_index_in_memory(
    make: Callable[..., Gpu], caplog: pytest.LogCaptureFixture
) -> None:
    device = FakeDevice()
    gpu = make(device)
    old, new = (gpu.index(built(seed)) for seed in (1, 2))
    await serve(gpu, old)
    for error in (BROKEN, MemoryError("std::bad_alloc")):
        device.copy_error = error
        await gpu.bring(new, [old], [old])
        assert (old.is_copied, new.is_copied) == (True, False)
        assert str(error) in caplog.text
        assert agrees(new)


async def test_a_copy_that_finds_something_else_is_not_used(
    make: Callable[..., Gpu], caplog: pytest.LogCaptureFixture
) -> None:
    device = FakeDevice()
    device.spoils = True
    gpu = make(device)
    index = gpu.index(built(1))
    await serve(gpu, index)
    assert not index.is_copied
    assert agrees(index)
    assert "not used" in caplog.text
    gc.collect()
    assert device.used == 0


async def test_a_search_that_lacks_memory_is_done_without_and_the_next_one_is_not(
    make: Callable[..., Gpu],
) -> None:
    device = FakeDevice()
    gpu = make(device)
    index = gpu.index(built(1))
    await serve(gpu, index)
    device.search_error = LACKING
    assert agrees(index)
    assert agrees(index)
    assert device.searches == 2


async def test_a_device_that_fails_is_not_used_any_more_nor_freed(
    make: Callable[..., Gpu], caplog: pytest.LogCaptureFixture
) -> None:
    device = FakeDevice()
    gpu = make(device)
    index, other = gpu.index(built(1)), gpu.index(built(2))
    await serve(gpu, index)
    device.search_error = BROKEN
    assert agrees(index)
    assert agrees(index)
    await gpu.bring(other, [], [])
    await serve(gpu, other)
    assert agrees(other)
    assert (device.searches, device.copies, device.used) == (1, 1, ROWS)
    own = [record for record in caplog.records if record.name == "keek_server.retrieval.gpu"]
    assert [record.levelno for record in own] == [logging.ERROR]


async def test_a_search_that_hangs_is_done_without_the_device(
    make: Callable[..., Gpu], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_module, "_SEARCH_S", 0.2)
    device = FakeDevice()
    gpu = make(device)
    index = gpu.index(built(1))
    await serve(gpu, index)
    device.answer.clear()
    assert await asyncio.to_thread(agrees, index)
    assert await asyncio.to_thread(agrees, index)
    # On a busy machine it may begin after it was given up.
    assert await asyncio.to_thread(device.searching.wait, 10)
    assert device.searches == 1
    device.answer.set()


async def test_closing_frees_all_and_searches_go_on() -> None:
    device = FakeDevice()
    gpu = Gpu(device)
    index = gpu.index(built(1))
    await serve(gpu, index)
    gpu.close()
    assert device.used == 0
    assert agrees(index)
