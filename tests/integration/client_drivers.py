"""One way to call both clients, so that one suite holds for both."""

import asyncio
from typing import Any, Protocol

from patience import TIMEOUTS

import keek


class Driver(Protocol):
    """A client whose calls can be awaited."""

    client: keek.Client | keek.aio.Client

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        """The result of one call."""

    async def collect(self, name: str, *args: Any, **options: Any) -> list[Any]:
        """All that an iterator gives."""

    async def take(self, count: int, name: str, *args: Any, **options: Any) -> list[Any]:
        """The first `count` of what an iterator gives; then it is closed."""

    async def next_of(self, iterator: Any) -> Any:
        """What an iterator gives next."""

    async def enter(self) -> None:
        """What `with` does first."""

    async def close(self) -> None:
        """Closes the client."""


class BlockingDriver:
    """`keek.Client`, in threads."""

    def __init__(self, target: str, **settings: Any) -> None:
        self.client = keek.Client(target, **{"timeouts": TIMEOUTS, **settings})

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        return await asyncio.to_thread(getattr(self.client, name), *args, **options)

    async def collect(self, name: str, *args: Any, **options: Any) -> list[Any]:
        return await asyncio.to_thread(lambda: list(getattr(self.client, name)(*args, **options)))

    async def take(self, count: int, name: str, *args: Any, **options: Any) -> list[Any]:
        def first() -> list[Any]:
            iterator = getattr(self.client, name)(*args, **options)
            taken = [next(iterator) for _ in range(count)]
            iterator.close()
            return taken

        return await asyncio.to_thread(first)

    async def next_of(self, iterator: Any) -> Any:
        return await asyncio.to_thread(next, iterator)

    async def enter(self) -> None:
        self.client.__enter__()

    async def close(self) -> None:
        await asyncio.to_thread(self.client.close)


class AsyncDriver:
    """`keek.aio.Client`."""

    def __init__(self, target: str, **settings: Any) -> None:
        self.client = keek.aio.Client(target, **{"timeouts": TIMEOUTS, **settings})

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        return await getattr(self.client, name)(*args, **options)

    async def collect(self, name: str, *args: Any, **options: Any) -> list[Any]:
        return [item async for item in getattr(self.client, name)(*args, **options)]

    async def take(self, count: int, name: str, *args: Any, **options: Any) -> list[Any]:
        iterator = getattr(self.client, name)(*args, **options)
        taken = [await anext(iterator) for _ in range(count)]
        await iterator.aclose()
        return taken

    async def next_of(self, iterator: Any) -> Any:
        return await anext(iterator)

    async def enter(self) -> None:
        await self.client.__aenter__()

    async def close(self) -> None:
        await self.client.close()


DriverType = type[BlockingDriver] | type[AsyncDriver]
DRIVERS: tuple[DriverType, ...] = (BlockingDriver, AsyncDriver)
