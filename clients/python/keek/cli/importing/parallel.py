"""Runs tasks in threads, a bounded number ahead."""

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Final

Task = Callable[[], None]

_LOOK_S: Final = 0.2
"""How often the main thread wakes: a signal that comes just before it goes to sleep does not wake it."""


def run_parallel(tasks: Iterable[Task], jobs: int, abandon: Callable[[], None]) -> None:
    """Runs all tasks, `jobs` at a time; `tasks` is read as they are needed.

    The first task that fails ends it: those that run may end, and its error is raised. An
    interruption calls `abandon`, which must make the running tasks end soon.
    """
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="keek-import")
    try:
        try:
            _feed(pool, tasks, 2 * jobs)
        except Exception:
            pool.shutdown(cancel_futures=True)
            raise
    except BaseException as error:
        if not isinstance(error, Exception):
            abandon()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _feed(pool: ThreadPoolExecutor, tasks: Iterable[Task], most: int) -> None:
    waiting: set[Future[None]] = set()
    for task in tasks:
        if len(waiting) >= most:
            waiting = _next(waiting)
        waiting.add(pool.submit(task))
    while waiting:
        waiting = _next(waiting)


def _next(waiting: set[Future[None]]) -> set[Future[None]]:
    """Waits for one; gives the others."""
    done: set[Future[None]] = set()
    others = waiting
    while not done:
        done, others = wait(waiting, _LOOK_S, FIRST_COMPLETED)
    for future in done:
        future.result()
    return others
