"""What callers may take up: so many places at the same time, and each not for ever."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from keek_server.errors import OverloadedError, UnavailableError

T = TypeVar("T")

_RETRY_AFTER_S = 2.0


class Slots:
    """A number of places; who finds none is refused at the door."""

    def __init__(self, limit: int, what: str) -> None:
        """
        Args:
            limit: The places.
            what: Who takes them, in the plural, for people.
        """
        self._limit = limit
        self._what = what
        self._taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Has a place until the block ends.

        Raises:
            OverloadedError: When all are taken.
        """
        if self._taken >= self._limit:
            raise OverloadedError(
                f"there are {self._taken} {self._what} already", retry_after_s=_RETRY_AFTER_S
            )
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1


async def timely(items: AsyncIterator[T], idle_s: float) -> AsyncIterator[T]:
    """The same items.

    Raises:
        UnavailableError: When the next one is not there after `idle_s`.
    """
    while True:
        try:
            async with asyncio.timeout(idle_s):
                item = await anext(items)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise UnavailableError(f"nothing arrived for {idle_s:g} s") from error
        yield item
